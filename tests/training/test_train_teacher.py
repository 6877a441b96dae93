"""Training a teacher: it learns, it is written and read, and processes agree."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from squares import PLACES, Squares, moment, recipe, sample, task, terms_of

from tokenflow.data.errors import BrokenPicture
from tokenflow.tokenizer.contrastive import ImageTextModel
from tokenflow.tokenizer.teachers import load_teacher
from tokenflow.training import teacher as training
from tokenflow.training.log import read
from tokenflow.training.teacher import TeacherConfig, captions_of, train_teacher
from tokenflow.training.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def squares(monkeypatch):
    """Every task of this file learns from squares and is judged by others."""
    two = Squares(0), Squares(10_000)
    monkeypatch.setattr(training, "open_pictures", lambda *given: two)


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
    made.model.half().float().eval()  # as it is stored
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
    with pytest.raises(ValueError, match=r"must have captions, here has none .*'im"):
        next(captions_of([{"image": None}], 3, "here"))

    class Holey(Squares):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            if index % 2:
                raise BrokenPicture("torn")
            return super().__getitem__(index)

    found = list(captions_of(Holey(0), 1000, "here"))
    assert len(found) == 10 and found[1] == sample(2)["caption"]
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
    training.open_pictures = lambda *given: (Squares(0), Squares(10_000))
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
