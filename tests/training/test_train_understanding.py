"""Teaching a language model to read tokens: labels, batches, what moves, what comes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_understanding import eyes, speaker, teacher_folder, words

from tokenflow import TokenFlowForUnderstanding, TokenFlowTokenizer
from tokenflow.data.errors import BrokenPicture
from tokenflow.training import config as recipes
from tokenflow.training.dialogues import DialogueConfig, DialogueStream, Writer
from tokenflow.training.small_words import MARKS, learn_words
from tokenflow.training.task import Moment
from tokenflow.training.understanding import (
    UnderstandingRecipe,
    UnderstandingTask,
    build_model,
    train_understanding,
)
from tokenflow.training.world import World
from tokenflow.understanding import model as model_file
from tokenflow.understanding.named import digest
from tokenflow.understanding.processing import TokenFlowProcessor

COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220)}


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tokenizer, a language model and conversations about squares of one colour."""
    folder = tmp_path_factory.mktemp("home")
    eyes().save_pretrained(folder / "eyes")
    speaker().save_pretrained(folder / "speaker")
    words().save_pretrained(folder / "speaker")
    rows = []
    for i in range(40):
        name = ("red", "blue")[i * 7 % 3 % 2]
        Image.new("RGB", (32, 32), COLOURS[name]).save(folder / f"{i}.png")
        said = [("human", "colour?\n<image>"), ("gpt", name)]
        if i % 5 == 0:
            said += [("human", "sure?"), ("gpt", "yes")]
        rows.append({"image": f"{i}.png", "conversations": turns(said)})
    text = {"conversations": turns([("human", "hello"), ("gpt", "good day")])}
    lines = [*map(json.dumps, rows[:20]), "{", json.dumps(text)]
    lines += map(json.dumps, rows[20:])
    (folder / "talk.jsonl").write_text("\n".join(lines))
    return folder


def turns(said):
    return [{"from": who, "value": words} for who, words in said]


def recipe(home, **sections):
    base = {
        "model": {
            "tokenizer": str(home / "eyes"),
            "language_model": str(home / "speaker"),
            "length": 160,
        },
        "data": {
            "source": str(home / "talk.jsonl"),
            "group": 4,
            "heldout_dialogues": 4,
        },
        "optimizer": {"name": "adamw", "learning_rate": 3e-3},
        "run": {
            "batch": 4,
            "steps": 2,
            "average": 0.0,
            "tensorboard": False,
            "log_every": 1,
        },
    }
    for name, changes in sections.items():
        old = base.get(name)
        base[name] = {**old, **changes} if isinstance(old, dict) else changes
    return recipes.build(UnderstandingRecipe, base)


def processor(template="qwen_2_5", image_tokens=3):
    return TokenFlowProcessor(words(), 32, image_tokens, template=template)


def said_by(sample, template="qwen_2_5", **how):
    """Ids as text, and the text of what is learned, its pieces parted by |."""
    made = processor(template)
    ids, labels, images, _ = Writer(made, how.pop("length", 500), **how)(sample)
    runs, before = [], False
    for token, label in zip(ids, labels, strict=True):
        if label != -100:
            assert label == token
            runs += [[]] if not before else []
            runs[-1].append(token)
        before = label != -100
    return made.tokenizer.decode(ids), [made.tokenizer.decode(r) for r in runs], images


SAMPLE = {
    "turns": [
        {"role": "user", "content": "<image>\nWhat?"},
        {"role": "assistant", "content": "A cat. ж"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    ],
    "images": [torch.full((3, 32, 32), 77, dtype=torch.uint8)],
}


def test_answers_and_their_ends_are_learned_and_nothing_else():
    text, learned, images = said_by(SAMPLE)
    assert learned == ["A cat. ж<|im_end|>", "So.<|im_end|>"]
    assert text.count("<image>") == 3  # one picture, three positions
    assert (images == 77).all() and images.shape == (1, 3, 32, 32)
    text, learned, _ = said_by(SAMPLE, "vicuna_v1")
    assert learned == [" A cat. ж</s>", " So.</s>"]


def test_stage_one_hears_a_picture_and_its_caption():
    sample = {**SAMPLE, "turns": SAMPLE["turns"][:2]}
    text, learned, _ = said_by(sample, "plain")
    assert text == "<image>" * 3 + "A cat. ж\n"
    assert learned == ["A cat. ж\n"]


def test_a_blind_model_is_asked_without_pictures():
    text, learned, images = said_by(SAMPLE, blind=True)
    assert "<image>" not in text and "user\nWhat?" in text and not len(images)
    assert learned == ["A cat. ж<|im_end|>", "So.<|im_end|>"]


def test_what_is_too_long_is_cut_and_what_is_then_useless_is_refused():
    ids, labels, *_ = Writer(processor(), 75)(SAMPLE)
    assert len(ids) == len(labels) == 75
    with pytest.raises(BrokenPicture, match="an answer must begin"):
        Writer(processor(), 60)(SAMPLE)
    with pytest.raises(BrokenPicture, match="1 pictures must fit"):
        Writer(processor(image_tokens=100), 90)(SAMPLE)


class Talks:
    """Conversations whose question says their number; every seventh is broken."""

    def __len__(self):
        return 50

    def size(self, index):
        return (index * 37 % 50) * 40, 0

    def __getitem__(self, index):
        if index % 7 == 0:
            raise BrokenPicture(f"{index} is broken")
        long = "x" * self.size(index)[0]
        said = [("user", f"{index}:{long}"), ("assistant", "a")]
        return {"turns": [{"role": r, "content": c} for r, c in said], "images": []}


def stream(**how):
    return DialogueStream(
        Talks(), Writer(processor(), 5000), **{"batch": 4, "seed": 3, "group": 5, **how}
    )


def test_steps_are_grouped_by_length_and_miss_nothing():
    made = stream()
    numbers = [n for step in range(10) for n in made.numbers(step)]
    assert sorted(numbers) == list(range(40))
    assert sorted(numbers[:20]) == list(range(20))  # one group
    assert numbers != sorted(numbers)

    def spread(source):
        found = [source.order(np.array(source.numbers(s))) for s in range(5)]
        return sum(np.ptp([Talks().size(i)[0] for i in step]) for step in found)

    assert spread(made) < 0.5 * spread(stream(group=1))


def test_a_batch_depends_on_its_step_alone_however_it_is_shared():
    whole = next(iter(stream(start=7)))
    assert (whole["input_ids"] == stream().read(7)["input_ids"]).all()
    halves = [stream(rank=r, world=2).read(7) for r in (0, 1)]
    for name in ("input_ids", "labels", "attention_mask"):
        longest = whole[name].shape[1]
        fill = {"input_ids": 256, "labels": -100, "attention_mask": 0}[name]
        rows = [
            torch.nn.functional.pad(
                h[name], (0, longest - h[name].shape[1]), value=fill
            )
            for h in halves
        ]
        assert (torch.cat(rows) == whole[name]).all()
    assert sum(h["broken"] for h in halves) == whole["broken"]


def test_broken_conversations_are_replaced_and_counted():
    made = stream(group=1)
    bad = int((made.order(np.arange(16)) % 7 == 0).sum())
    assert sum(made.read(step)["broken"] for step in range(4)) >= bad > 0


def moment(step=0):
    return Moment(step, 0.0, 0, World())


def gradients(task, batch, accumulate=1):
    task.model.zero_grad()
    task.before_step(batch, {}, moment())
    size = len(batch["images"]) // accumulate
    total = 0.0
    for i in range(accumulate):
        part = {
            k: v[i * size : (i + 1) * size] for k, v in batch.items() if k != "broken"
        }
        loss = task.loss("model", task.model, part, moment())["loss"] / accumulate
        loss.backward()
        total += loss.item()
    return total, {
        n: p.grad.clone()
        for n, p in task.model.named_parameters()
        if p.grad is not None
    }


def test_every_learned_word_counts_alike_however_a_step_is_split(home):
    whole = UnderstandingTask(recipe(home), World())
    batch = next(whole.batches(0, World()))
    loss, moved = gradients(whole, batch)
    split = UnderstandingTask(recipe(home, run={"accumulate": 4}), World())
    again, parts = gradients(split, batch, 4)
    assert loss == pytest.approx(again, rel=1e-5)
    for name, gradient in moved.items():
        torch.testing.assert_close(gradient, parts[name], rtol=1e-3, atol=1e-5)
    output = whole.model(
        input_ids=batch["input_ids"],
        pixel_values=torch.cat(batch["images"]).float() / 127.5 - 1,
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
    )
    assert loss == pytest.approx(output.loss.item(), rel=1e-5)


def test_each_stage_moves_its_parts_alone(home):
    for train, wanted in (
        ("projector", {"projector"}),
        ("all", {"projector", "language_model"}),
    ):
        task = UnderstandingTask(recipe(home, train=train), World())
        _, moved = gradients(task, next(task.batches(0, World())))
        assert {name.split(".")[0] for name in moved} == wanted


def test_a_batch_without_pictures_moves_no_projector_yet_reaches_it(home):
    task = UnderstandingTask(recipe(home), World())
    text = {"turns": SAMPLE["turns"][2:], "images": []}
    batch = task.writer.batch([task.writer(text)])
    loss, moved = gradients(task, batch)
    assert moved["projector.0.weight"].abs().sum() == 0
    plain = task.model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
    )
    assert loss == pytest.approx(plain.loss.item(), rel=1e-5)


def test_two_stages_learn_and_are_read_back(home, tmp_path):
    first = recipe(home, train="projector", model={"template": "plain"})
    facts = train_understanding(first, tmp_path / "one", bar=False)
    assert facts["steps"] == 2 and facts["heldout_loss"] > 0
    changes = {"init": str(tmp_path / "one" / "model"), "template": "qwen_2_5"}
    run = {"steps": 60, "batch": 8}
    second = recipe(home, model=changes, run=run)
    facts = train_understanding(second, tmp_path / "two", bar=False)
    steps = [
        json.loads(line)
        for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()
    ]
    losses = [e["loss"] for e in steps if e["event"] == "step"]
    assert losses[-1] < 0.3 * losses[0]
    model = TokenFlowForUnderstanding.from_pretrained(tmp_path / "two" / "model")
    assert model.processor.template == "qwen_2_5"
    for name, colour in COLOURS.items():
        square = Image.new("RGB", (32, 32), colour)
        assert model.answer(square, "colour?", max_new_tokens=8) == name


def test_pixels_alone_never_hear_the_semantic_half(home, tmp_path):
    only = recipe(home, model={"inputs": "pixel"}, run={"steps": 2})
    train_understanding(only, tmp_path, bar=False)
    made = TokenFlowForUnderstanding.from_pretrained(tmp_path / "model")
    weight = made.projector[0].weight
    half = made.tokenizer.config.semantic_dim
    assert (weight[:, :half] == 0).all() and (weight[:, half:] != 0).any()


def test_a_teacher_is_read_saved_and_gone_on_with(home, tmp_path):
    taught = {"inputs": "teacher", "teacher": str(teacher_folder(tmp_path / "t"))}
    first = recipe(home, train="projector", model={**taught, "template": "plain"})
    train_understanding(first, tmp_path / "one", bar=False)
    taught["init"] = str(tmp_path / "one" / "model")
    second = recipe(home, model=taught, saved="float32")
    facts = train_understanding(second, tmp_path / "two", bar=False)
    made = TokenFlowForUnderstanding.from_pretrained(tmp_path / "two" / "model")
    assert made.tokenizer is None and made.config.image_tokens == 16
    red = Image.new("RGB", (32, 32), COLOURS["red"])
    seen = made.processor(red, "<image>")["pixel_values"]
    before = load_file(tmp_path / "t" / "model.safetensors")
    weights = {k.removeprefix("image_"): v for k, v in before.items()}
    for name, value in made.teacher.encoder.state_dict().items():
        assert torch.equal(value, weights[f"encoder.{name}"])
    assert made.image_features(seen).shape == (1, 16, 32)
    # what was judged in training is what comes back
    again = UnderstandingTask(
        recipe(home, model={**taught, "init": str(tmp_path / "two" / "model")}),
        World(),
    )
    scores = again.judge(None, moment())
    assert scores["heldout_loss"] == pytest.approx(facts["heldout_loss"], rel=1e-5)
    with pytest.raises(ValueError, match="must be a model of inputs 'last'"):
        build_model(recipe(home, model={"init": str(tmp_path / "one" / "model")}))


@pytest.mark.parametrize(
    ("saved", "precision", "dtype"),
    [
        ("auto", "float32", torch.float16),
        ("auto", "bfloat16", torch.bfloat16),
        ("float32", "bfloat16", torch.float32),
    ],
)
def test_weights_are_saved_in_the_dtype_asked_for(
    home, tmp_path, monkeypatch, saved, precision, dtype
):
    monkeypatch.setattr(model_file, "SHARD", "20KB")
    run = {"steps": 1, "precision": precision}
    train_understanding(recipe(home, saved=saved, run=run), tmp_path, bar=False)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 2  # shards
    weights = {k: v for file in files for k, v in load_file(file).items()}
    eye = eyes().state_dict()
    for name, value in weights.items():
        if name.startswith("tokenizer."):
            own = eye[name.removeprefix("tokenizer.")]
            assert torch.equal(value.to(own), own), name  # narrow only if that is exact
        else:
            assert value.dtype == dtype, name
    books = weights["tokenizer.quantizer.semantic_book"]
    assert books.dtype == torch.float32
    read = TokenFlowForUnderstanding.from_pretrained(tmp_path / "model", dtype="auto")
    assert read.dtype == dtype == read.projector[0].weight.dtype
    for name, value in read.state_dict().items():
        assert torch.equal(value, weights[name].to(value)), name


def test_a_shipped_tokenizer_is_kept_by_name(home, tmp_path):
    model = {"tokenizer": "mini", "length": 160}
    train_understanding(
        recipe(home, model=model, run={"steps": 1}), tmp_path, bar=False
    )
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == {"projector", "language_model"}
    written = (tmp_path / "model" / "config.json").read_text()
    assert "_name_or_path" not in written  # nor any folder of whoever trained it
    mini = TokenFlowTokenizer.from_pretrained("mini")
    read = TokenFlowForUnderstanding.from_pretrained(tmp_path / "model")
    assert read.config.image_digest == digest(mini.state_dict())
    for name, value in mini.state_dict().items():
        assert torch.equal(read.tokenizer.state_dict()[name], value), name


def test_what_is_compared_is_checked():
    for changes, complaint in (
        ({"inputs": "sound"}, "model.inputs must be one of"),
        ({"inputs": "teacher"}, "model.teacher must be given"),
        ({"length": 1}, "model.length must be at least 2"),
        ({"vocabulary": 9}, "model.vocabulary must be at least 260"),
        ({"template": "x"}, "model.template must be one of"),
    ):
        values = {"model": changes, "run": {"steps": 1}}
        with pytest.raises(ValueError, match=complaint):
            recipes.build(UnderstandingRecipe, values)
    with pytest.raises(ValueError, match="saved must be one of .* got 'int8'"):
        recipes.build(UnderstandingRecipe, {"saved": "int8", "run": {"steps": 1}})
    with pytest.raises(ValueError, match="data.group must be at least 1"):
        DialogueConfig(group=0)


def test_small_words_write_any_text():
    made = learn_words(["Is there a cat?"] * 5, 300)
    for text in ("Is there a cat?", "жук 🐈\n", "<|im_end|>"):
        assert made.decode(made(text)["input_ids"]) == text
    assert len(made("<|im_end|>")["input_ids"]) == 1
    assert len(made("Is there")["input_ids"]) < 8


def test_small_words_are_not_learned_across_marks():
    made = learn_words(["cat<|im_end|>dog"] * 5, 300)
    assert len(made("cat<|im_end|>dog")["input_ids"]) == 3
    assert not any("|" in word and len(word) > 1 for word in _joined(made))


def _joined(made):
    """Tokens that are no marks."""
    return made.get_vocab().keys() - set(MARKS)


@pytest.mark.parametrize("name", recipes.recipes("understanding"))
def test_every_recipe_that_ships_is_whole(name):
    found = recipes.load(UnderstandingRecipe, name)
    assert found.train == ("projector" if name.endswith("stage1") else "all")
    if name != "mini":
        rates = {"stage1": (1e-3, 256), "stage2": (2e-5, 128)}[name.split("_")[-1]]
        assert (found.optimizer.learning_rate, found.run.batch) == rates
