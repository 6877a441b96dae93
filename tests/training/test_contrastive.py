"""The contrastive teacher: its two losses, its vocabulary, its files, many processes.

The small world of these tests: a square of one of three colours in one of the four
quarters of a grey picture, or two squares, and a caption that says so.
"""

import json
import math
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from tokenflow.data.errors import BrokenPicture
from tokenflow.tokenizer.contrastive import (
    PAD,
    START,
    ImageTextModel,
    TextEncoder,
    Vocabulary,
    as_batch,
)
from tokenflow.tokenizer.teachers import load_teacher
from tokenflow.training import contrastive
from tokenflow.training.contrastive import (
    TeacherConfig,
    TeacherRecipe,
    TeacherTask,
    captions_of,
    dense_loss,
    pieces_of,
    read_texts,
    sigmoid_loss,
    train_teacher,
)
from tokenflow.training.log import read
from tokenflow.training.loop import Moment, RunConfig
from tokenflow.training.optimizers import OptimizerConfig
from tokenflow.training.pictures import DataConfig
from tokenflow.training.world import World

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230)}
PLACES = {
    "top left": (0, 0),
    "top right": (0, 1),
    "bottom left": (1, 0),
    "bottom right": (1, 1),
}
TINY = TeacherConfig(
    encoder={"kind": "clip", "width": 32, "layers": 2, "heads": 2, "patch": 4}
    | {"image_size": 16},
    image_size=16,
    width=32,
    text={"width": 32, "layers": 1, "heads": 2, "length": 16},
    vocabulary=300,
    pieces=6,
)


def sample(number):
    """One or two squares; a pure function of the number."""
    rng = random.Random(number)
    image = torch.full((3, 16, 16), 110, dtype=torch.uint8)
    image += torch.randint(0, 30, (3, 16, 16), generator=torch.manual_seed(number))
    image = image.to(torch.uint8)
    names = []
    for place in rng.sample(sorted(PLACES), rng.choice([1, 2])):
        colour = rng.choice(sorted(COLOURS))
        row, column = (8 * half + 2 for half in PLACES[place])
        block = image[:, row : row + 4, column : column + 4]
        block.copy_(torch.tensor(COLOURS[colour])[:, None, None].expand(3, 4, 4))
        names.append(f"{colour} square at the {place}")
    return {"image": image, "caption": "a " + " and a ".join(names)}


def batch_of(numbers):
    samples = [sample(n) for n in numbers]
    return {
        "image": torch.stack([s["image"] for s in samples]),
        "caption": [s["caption"] for s in samples],
    }


class Squares:
    """A source of samples from one number on."""

    def __init__(self, first):
        self.first = first

    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        return sample(self.first + index)


@pytest.fixture(autouse=True)
def squares(monkeypatch):
    """Every task of this file learns from squares and is judged by others."""
    two = Squares(0), Squares(10_000)
    monkeypatch.setattr(contrastive, "open_pictures", lambda *given: two)


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def recipe(model=TINY, heldout=64, **run):
    run = {"batch": 32, "steps": 4, "tensorboard": False, "average": 0.0} | run
    return TeacherRecipe(
        model=model,
        data=DataConfig(heldout_pictures=heldout),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, warmup=10),
        run=RunConfig(**run),
    )


def task(model=TINY, heldout=64, world=None):
    return TeacherTask(recipe(model, heldout), world or World())


def moment(step=0, world=None):
    return Moment(step, 0.0, 0, world or World())


def terms_of(made, numbers, where=None):
    return made.loss("model", made.model, batch_of(numbers), where or moment())


def test_the_sigmoid_loss_by_hand():
    """Two pictures, three texts, cosines 1, 0 and −1; temperature 2, bias −½."""
    pictures = torch.tensor([[1.0, 0], [0, 1]])
    texts = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    scale, bias = torch.tensor(math.log(2.0)), torch.tensor(-0.5)

    def cost(logit):
        return math.log(1 + math.exp(-logit))

    first = cost(1.5) + cost(0.5) + cost(2.5)  # 2·1−½; −(2·0−½); −(2·(−1)−½)
    second = cost(1.5) + cost(0.5) + cost(0.5)
    belongs = torch.tensor([[True, False, False], [False, True, False]])
    loss = sigmoid_loss(pictures, texts, belongs, scale, bias)
    assert loss.item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_the_dense_loss_by_hand():
    """One picture of two patches, two pieces of which the first belongs to it."""
    patches = torch.tensor([[[1.0, 0], [0, 1]]])
    texts = torch.tensor([[1.0, 0], [0.6, 0.8]])
    scale, bias = torch.tensor(math.log(3.0)), torch.tensor(0.25)
    first = math.log((math.exp(3) + 1) / 2) + 0.25
    second = math.log((math.exp(1.8) + math.exp(2.4)) / 2) + 0.25
    expected = (math.log(1 + math.exp(-first)) + math.log(1 + math.exp(second))) / 2
    belongs = torch.tensor([[True, False]])
    loss = dense_loss(patches, texts, belongs, scale, bias)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_patch_that_shows_a_piece_gets_most_of_its_gradient():
    patches = F.normalize(torch.tensor([[[2.0, 1], [-1, 2], [-2, 1]]]), dim=-1)
    patches.requires_grad_()
    texts = torch.tensor([[1.0, 0]])
    loss = dense_loss(
        patches, texts, torch.tensor([[True]]), torch.tensor(2.3), torch.tensor(0.0)
    )
    loss.backward()
    shares = patches.grad.norm(dim=-1)[0]
    assert shares[0] > 0.99 * shares.sum()


def test_a_vocabulary_reads_any_script_and_comes_back(tmp_path):
    learned = Vocabulary.learn(["a red car", "ein roter Wagen", "红色的汽车"] * 5, 320)
    assert 258 < len(learned) <= 320
    again = Vocabulary.from_text(learned.text())
    texts = ["A RED CAR", "红色的猫", "кот", "", "🐱"]
    assert learned.numbers(texts) == again.numbers(texts)
    assert learned.numbers(["A red car"]) == learned.numbers(["a RED car"])
    assert all(START < n < len(learned) for row in learned.numbers(texts) for n in row)
    assert learned.numbers([""]) == [[]]
    with pytest.raises(ValueError, match="size must be at least 258, got 257"):
        Vocabulary.learn(["a"], 257)


def test_a_vocabulary_does_not_depend_on_chance():
    captions = [sample(n)["caption"] for n in range(200)]
    assert (
        Vocabulary.learn(captions, 300).text() == Vocabulary.learn(captions, 300).text()
    )


def test_texts_are_cut_and_filled_up():
    assert as_batch([[5, 6, 7, 8], [9]], 4).tolist() == [
        [START, 5, 6, 7],
        [START, 9, PAD, PAD],
    ]
    assert as_batch([], 4).shape == (0, 1)
    with pytest.raises(ValueError, match=r"\[N, T\] with T ≤ 4, got \[1, 5\]"):
        TextEncoder(9, 4, 8, 1, 2, 4)(torch.ones(1, 5, dtype=torch.int64))


@pytest.mark.parametrize("training", [True, False])
def test_a_text_does_not_see_how_long_its_neighbours_are(training):
    torch.manual_seed(0)
    encoder = TextEncoder(40, 8, 16, 2, 2, 10).train(training)
    short = torch.tensor([[START, 7, 9]])
    filled = torch.tensor([[START, 7, 9, PAD, PAD, PAD], [START, 3, 4, 5, 6, 7]])
    torch.testing.assert_close(encoder(short), encoder(filled)[:1])
    swapped = torch.tensor([[START, 9, 7]])  # the order of the words counts
    assert (encoder(short) - encoder(swapped)).abs().max() > 1e-3


def test_pieces_are_runs_of_one_to_three_tokens():
    runs = pieces_of([7, 8, 7, 8])
    assert sorted(runs.values()) == [(7,), (7, 8), (7, 8, 7), (8,), (8, 7), (8, 7, 8)]
    assert len(runs) == 6 and 0 not in runs
    assert pieces_of([7])[7] == (7,) and pieces_of([]) == {}
    longest = (1 << 20) - 1
    assert all(0 < key < 1 << 60 for key in pieces_of([longest] * 3))


def test_the_pieces_of_a_caption_follow_from_it_alone():
    vocabulary = Vocabulary.learn([sample(n)["caption"] for n in range(99)], 300)
    captions = [sample(n)["caption"] for n in range(4)] + [""]
    both = read_texts(captions, vocabulary, 16, 3, moment().rng)
    one = read_texts(captions[2:3], vocabulary, 16, 3, moment().rng)
    assert torch.equal(both.keys[6:9], one.keys)
    assert torch.equal(both.pieces[6:9], one.pieces)
    assert (both.keys[-3:] == 0).all() and (both.pieces[-3:, 1:] == PAD).all()
    for row, keys in zip(both.all_keys, both.keys.view(5, 3), strict=True):
        assert set(keys.tolist()) <= {*row.tolist(), 0}
    later = read_texts(captions, vocabulary, 16, 3, moment(step=1).rng)
    assert not torch.equal(both.keys, later.keys)


def test_a_batch_counts_every_piece_once():
    """The same caption twice is no wrong pair and weighs no more."""
    made = task()
    batch = batch_of([3, 4, 3, 5])
    terms = terms_of(made, [3, 4, 3, 5])
    model = made.model
    texts = read_texts(
        batch["caption"],
        model.vocabulary,
        16,
        6,
        lambda caption: moment().rng("pieces", caption),
    )
    distinct = {k: t for k, t in zip(texts.keys.tolist(), texts.pieces, strict=True)}
    assert len(distinct) < len(texts.keys)
    vectors = model.encode_tokens(torch.stack([distinct[k] for k in sorted(distinct)]))
    belongs = torch.tensor(
        [[k in row for k in sorted(distinct)] for row in texts.all_keys.tolist()]
    )
    pictures, patches = model.encode_images(batch["image"] / 127.5 - 1)
    expected = dense_loss(
        patches, vectors, belongs, model.patch_scale, model.patch_bias
    )
    torch.testing.assert_close(terms["dense"], expected)
    known = sorted(set(batch["caption"]))
    assert len(known) == 3
    belongs = torch.tensor([[c == k for k in known] for c in batch["caption"]])
    expected = sigmoid_loss(
        pictures, model.encode_texts(known), belongs, model.scale, model.bias
    )
    torch.testing.assert_close(terms["captions"], expected)
    torch.testing.assert_close(terms["loss"], terms["captions"] + terms["dense"])


def test_every_parameter_learns():
    made = task()
    terms_of(made, range(4))["loss"].backward()
    assert all(p.grad is not None for p in made.model.parameters())
    assert not made.whole("model")[0].shape  # what FSDP cannot spread


def test_it_learns_what_captions_say_and_where_it_is(tmp_path):
    facts = train_teacher(recipe(steps=120, evaluate_every=60), tmp_path, bar=False)
    scores = [e for e in read(tmp_path) if e["event"] == "heldout"]
    before, after = task().judge(None, moment()), scores[-1]
    steps = [e for e in read(tmp_path) if e["event"] == "step"]
    assert steps[-1]["captions"] < 0.6 * steps[0]["captions"]
    assert steps[-1]["dense"] < 0.6 * steps[0]["dense"]
    assert before["retrieval"] < 0.1  # about 60 captions to choose from
    assert after["retrieval"] > 0.3
    assert before["pieces"] < 0.6 and after["pieces"] > 0.8
    assert facts["retrieval"] == after["retrieval"]
    model = ImageTextModel.from_pretrained(tmp_path / "model")
    # without ever being told where: the patches of a square name its colour
    found = []
    for number in range(20_000, 20_040):
        one = sample(number)
        if " and " in one["caption"]:
            continue
        colour = one["caption"].split()[1]
        place = PLACES[one["caption"].split(" the ")[1]]
        maps = model.locate([one["image"]], [colour])[0, 0]
        quarters = F.max_pool2d(maps[None], 2)[0]
        found.append(divmod(quarters.argmax().item(), 2) == place)
    assert sum(found) / len(found) > 0.6  # chance is a quarter


def test_a_trained_teacher_is_a_folder(tmp_path):
    made = task()
    made.finish(tmp_path, World())
    model = ImageTextModel.from_pretrained(tmp_path / "model")
    texts = ["a red square", "ein Quadrat"]
    images = [sample(1)["image"], sample(2)["image"]]
    made.model.eval()
    assert torch.equal(
        model.similarity(images, texts), made.model.similarity(images, texts)
    )
    assert model.similarity(images, texts).shape == (2, 2)
    assert model.locate(images, texts).shape == (2, 2, 4, 4)
    teacher = load_teacher(tmp_path / "model", "contrastive")
    assert teacher(torch.zeros(1, 3, 16, 16)).shape == (1, 16, 32)
    assert teacher.encoder.patch == 4


def test_a_folder_of_another_model_is_refused(tmp_path):
    made = task()
    made.finish(tmp_path, World())
    folder = tmp_path / "model"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"width": 33}))
    with pytest.raises(ValueError, match="have another shape than this model's"):
        ImageTextModel.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    with pytest.raises(ValueError, match="must have model_type tokenflow_image_text"):
        ImageTextModel.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="there is no tokenizer.json"):
        ImageTextModel.from_pretrained(folder)


def test_a_config_out_of_range_is_named():
    with pytest.raises(ValueError, match="train: model.dense must be above 0, got 0"):
        TeacherConfig(dense=0)
    with pytest.raises(ValueError, match="model.vocabulary must be at least 258"):
        TeacherConfig(vocabulary=257)
    with pytest.raises(ValueError, match="model.vocabulary must be below 1048576"):
        TeacherConfig(vocabulary=1 << 20)
    with pytest.raises(ValueError, match="encoder.*kind.* must be one of .*got None"):
        task(TeacherConfig(encoder={}))


def test_pictures_without_captions_are_told():
    with pytest.raises(ValueError, match=r"must have captions .* here has none .*'im"):
        next(captions_of([{"image": None}], 3, "here"))

    class Holey(Squares):
        def __getitem__(self, index):
            if index % 2:
                raise BrokenPicture("torn")
            return super().__getitem__(index)

    found = list(captions_of(Holey(0), 10_000, "here"))
    assert len(found) == 5000 and found[1] == sample(2)["caption"]
    spread = list(captions_of(Squares(0), 10, "here"))
    assert spread[1] == sample(1000)["caption"]


def test_a_resumed_run_is_the_run_it_would_have_been(tmp_path):
    train_teacher(recipe(steps=3), tmp_path / "whole", bar=False)
    train_teacher(recipe(steps=2), tmp_path / "parts", bar=False)
    train_teacher(recipe(steps=3), tmp_path / "parts", resume=True, bar=False)
    whole, parts = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes()
        for name in ("whole", "parts")
    )
    assert whole == parts


def gradients(made, world, numbers):
    """Loss and gradients of one process with its share of the batch."""
    terms = terms_of(made, numbers, moment(3, world))
    terms["loss"].backward()
    return [terms["loss"].detach(), *(p.grad for p in made.model.parameters())]


class Room:
    """Where the threads of a test meet, each a process of a `World`."""

    def __init__(self, size):
        self.size, self.held = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def all(self, rank, tensor):
        self.barrier.wait()
        self.held[rank] = tensor.detach().clone()
        self.barrier.wait()
        return list(self.held)


class ThreadWorld(World):
    def __init__(self, rank, room):
        super().__init__(rank, room.size)
        object.__setattr__(self, "room", room)

    def sum(self, tensor):
        return torch.stack(self.room.all(self.rank, tensor)).sum(0)

    def gather(self, tensor):
        return torch.cat(self.room.all(self.rank, tensor))


@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_see_every_pair(size):
    """Mean loss and mean gradient are those of one process with all pictures."""
    room, share = Room(size), 8 // size
    tasks = [task(heldout=1) for _ in range(size)]

    def work(rank):
        numbers = range(rank * share, (rank + 1) * share)
        return gradients(tasks[rank], ThreadWorld(rank, room), numbers)

    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(work, range(size)))
    whole = gradients(task(heldout=1), World(), range(8))
    for alone, *parts in zip(whole, *found, strict=True):
        mean = torch.stack(parts).mean(0)
        torch.testing.assert_close(mean, alone, rtol=1e-3, atol=1e-6)


def process(rank, size, port, folder):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, rank=rank, world_size=size)
    share = 8 // size
    numbers = range(rank * share, (rank + 1) * share)
    world = World(rank, size)
    mean = [world.mean(part) for part in gradients(task(heldout=1), world, numbers)]
    if world.first:
        torch.save(mean, folder / "mean.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_so_do_real_processes(tmp_path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    mp.spawn(process, (2, port, tmp_path), nprocs=2)
    mean = torch.load(tmp_path / "mean.pt")
    whole = gradients(task(heldout=1), World(), range(8))
    for found, alone in zip(mean, whole, strict=True):
        torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-6)
