"""Training a unified model: both tasks learn, are judged, written and gone on with."""

import json

import pytest
import tiny_unified as tiny
import torch
from PIL import Image
from squares import COLOURS, Squares

from tokenflow import TokenFlowForGeneration, TokenFlowTokenizer, TokenFlowUnified
from tokenflow.generation.config import TokenFlowGenerationConfig
from tokenflow.training import generation as training
from tokenflow.training.config import build, load, of_run, recipes
from tokenflow.training.log import read
from tokenflow.training.task import Moment
from tokenflow.training.unified import UnifiedRecipe, UnifiedTask, train_unified
from tokenflow.training.words import learn
from tokenflow.training.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def squares(monkeypatch):
    two = Squares(0), Squares(10_000)
    monkeypatch.setattr(training, "open_pictures", lambda *given: two)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An image tokenizer, and conversations about pictures of one colour."""
    folder = tmp_path_factory.mktemp("home")
    tiny.eyes().save_pretrained(folder / "eyes")
    rows = []
    for i in range(20):
        name = ("red", "blue")[i * 7 % 3 % 2]
        Image.new("RGB", (16, 16), COLOURS[name]).save(folder / f"{i}.png")
        said = [("human", "colour?\n<image>"), ("gpt", name)]
        if i % 5 == 0:
            said += [("human", "sure?"), ("gpt", "yes, it is")]
        rows.append({"image": f"{i}.png", "conversations": turns(said)})
    rows.append({"conversations": turns([("human", "hello"), ("gpt", "good day")])})
    (folder / "talk.json").write_text(json.dumps(rows))
    return folder


def turns(said):
    return [{"from": who, "value": words} for who, words in said]


@pytest.fixture
def recipe(home):
    def made(**sections):
        run = {"batch": 4, "steps": 2, "tensorboard": False, "average": 0.0}
        values = {
            "model": {**tiny.MODEL, "image_start": 400, "text_length": 30},
            "tokenizer": str(home / "eyes"),
            "words": {"captions": 20},
            "data": {"heldout_pictures": 6},
            "drawn": {"pictures": 2, "guidance": 1.0},
            "dialogues": {"source": str(home / "talk.json"), "heldout_dialogues": 3},
            "answers": {"batch": 8, "length": 120},
            "optimizer": {"name": "adamw", "learning_rate": 3e-3},
            **sections,
        }
        values["run"] = run | sections.get("run", {})
        return build(UnifiedRecipe, values)

    return made


def moment(step=0):
    return Moment(step, 0.0, 0, World())


def test_a_run_is_a_model_that_paints_and_answers(recipe, tmp_path):
    facts = train_unified(recipe(run={"evaluate_every": 1}), tmp_path, bar=False)
    assert facts["steps"] == 2 and facts["answer_loss"] > 0 and 0 <= facts["exact"] <= 1
    assert facts["loss_4x4"] > 0
    assert len([*(tmp_path / "pictures").glob("drawn-*.png")]) == 2
    model = TokenFlowUnified.from_pretrained(tmp_path / "model")
    (picture,) = model.generate("a red square", generator=torch.Generator())
    assert picture.size == (16, 16)
    assert isinstance(model.answer(picture, "colour?", max_new_tokens=4), str)
    (step, *_) = (e for e in read(tmp_path) if e["event"] == "step")
    assert step["loss"] == pytest.approx(step["painting"] + step["answering"], 1e-4)
    assert of_run(UnifiedRecipe, tmp_path) == recipe(run={"evaluate_every": 1})


@pytest.fixture(scope="module")
def painter(home):
    """A generation model with words of its own."""
    config = {name: value for name, value in tiny.MODEL.items() if name != "template"}
    torch.manual_seed(3)
    made = TokenFlowForGeneration(
        TokenFlowGenerationConfig(**config, image_tokenizer=str(home / "eyes"))
    )
    made.text_tokenizer = learn(["a red square at the left"], 300)
    made.attach(TokenFlowTokenizer.from_pretrained(home / "eyes"))
    made.save_pretrained(home / "painter")
    return home / "painter"


def test_a_painter_gives_all_it_has_learned(recipe, painter):
    given = TokenFlowForGeneration.from_pretrained(painter)
    new = UnifiedTask(recipe(), World()).model
    said = []
    chosen = recipe(painter=str(painter))
    model = UnifiedTask(chosen, World(), said.append).model
    now, before, old = model.state_dict(), new.state_dict(), given.state_dict()
    for name in old.keys() - {"embed.weight", "head.weight"}:
        assert torch.equal(now[name], old[name]), name
    assert torch.equal(now["head.weight"][400:], old["head.weight"][tiny.TEXT_IDS :])
    assert torch.equal(now["head.weight"][:400], before["head.weight"][:400])
    ours, theirs = (m.text_tokenizer.get_vocab() for m in (model, given))
    for token, row in ours.items():
        kept = now["embed.weight"][row]
        if token in theirs:
            assert torch.equal(kept, old["embed.weight"][theirs[token]]), token
        else:
            assert torch.equal(kept, before["embed.weight"][row]), token
    assert any(ours[token] != theirs[token] for token in ours.keys() & theirs.keys())
    assert f"tokens known to the painter: {len(ours.keys() & theirs.keys())}" in said
    indices = torch.arange(21)[None]
    prompts = [
        m.text_tokenizer("<img>", return_tensors="pt").input_ids for m in (model, given)
    ]
    a, b = (
        m.eval()(prompt, indices).logits[..., m.config.image_start :]
        for m, prompt in zip((model, given), prompts, strict=True)
    )
    torch.testing.assert_close(a, b)


def test_mistaken_painters_are_named(recipe, painter, tmp_path):
    with pytest.raises(ValueError, match="painter must be empty where init is given"):
        recipe(painter="x", init="y")
    with pytest.raises(ValueError, match="near.head must be 0 where painter is given"):
        recipe(painter="x", near={"head": 2.0})
    sizes = {**tiny.MODEL, "image_start": 400, "text_length": 30}
    wide = {**tiny.LANGUAGE, "hidden_size": 64}
    for changes, name in (
        ({"language": wide}, "language"),
        ({"places": "grid"}, "places"),
        ({"qk_norm_eps": 1e-3}, "qk_norm_eps"),
    ):
        other = recipe(painter=str(painter), model={**sizes, **changes})
        with pytest.raises(ValueError, match=f"painter must have the model's {name}"):
            UnifiedTask(other, World())
    pairs = recipe(
        painter=str(painter), model={**sizes, "scales": [[n, n] for n in tiny.SCALES]}
    )
    assert UnifiedTask(pairs, World()).model.scales == ((1, 1), (2, 2), (4, 4))
    silent = tmp_path / "silent"
    given = TokenFlowForGeneration.from_pretrained(painter)
    given.text_tokenizer = None
    given.save_pretrained(silent)
    with pytest.raises(ValueError, match="painter must have a text tokenizer"):
        UnifiedTask(recipe(painter=str(silent)), World())


def test_one_vocabulary_holds_both_kinds_of_words_and_all_marks(recipe):
    words = UnifiedTask(recipe(), World()).model.text_tokenizer
    for mark in UnifiedTask.marks:
        assert len(words(mark)["input_ids"]) == 1
    for text in ("square at the top left", "assistant\nblue"):  # of both kinds
        assert len(words(text)["input_ids"]) < len(text) / 3
    assert len(words) <= 400


def test_both_losses_fall(recipe):
    task = UnifiedTask(recipe(drawn={"pictures": 0}), World())
    first = task.judge(None, moment())
    optimizer = torch.optim.Adam(task.model.parameters(), 5e-3)
    batch, losses = next(task.batches(0, World())), []
    for step in range(25):
        optimizer.zero_grad()
        task.before_step(batch, {}, moment(step))
        found = task.loss("model", task.model, batch, moment(step))
        found["loss"].backward()
        optimizer.step()
        losses.append((found["painting"].item(), found["answering"].item()))
    for before, after in zip(losses[0], losses[-1], strict=True):
        assert after < 0.7 * before
    assert task.judge(None, moment())["answer_loss"] < first["answer_loss"]


def test_painting_learns_what_is_near_as_a_generation_model_does(recipe):
    seen, task = [], UnifiedTask(recipe(near={"entries": 4, "noise": 0.2}), World())
    batch = next(task.batches(0, World()))
    painted = task.painted(batch, moment())

    def call(*args, **given):
        seen.append(given)
        return task.model(*args, **given)

    task.before_step(batch, {}, moment())
    found = task.loss("model", call, batch, moment())["painting"]
    assert painted.keys() == {"indices", "near", "shares"}
    assert all(torch.equal(seen[0][key], painted[key]) for key in painted)
    prefix = task.prefix(task.told(batch, moment()), trimmed=True)
    alone = task.model(prefix, suffix=task.suffix, **painted).loss
    torch.testing.assert_close(found, alone)


def gradients(task, batch, accumulate=1):
    task.before_step(batch, {}, moment())
    total = 0.0
    for i in range(accumulate):
        part = {}
        for key, value in batch.items():
            if isinstance(value, torch.Tensor | list):
                size = len(value) // accumulate
                value = value[i * size : (i + 1) * size]
            part[key] = value
        loss = task.loss("model", task.model, part, moment())["loss"] / accumulate
        loss.backward()
        total += loss.item()
    return total, {n: p.grad for n, p in task.model.named_parameters()}


def test_a_step_is_the_same_however_it_is_split(recipe):
    whole = UnifiedTask(recipe(), World())
    batch = next(whole.batches(0, World()))
    one, moved = gradients(whole, batch)
    split = UnifiedTask(recipe(run={"accumulate": 2}), World())
    other, parts = gradients(split, batch, 2)
    assert one == pytest.approx(other, rel=1e-5)
    for name, gradient in moved.items():
        assert gradient.any()
        torch.testing.assert_close(gradient, parts[name], rtol=1e-3, atol=1e-5)


def test_the_weight_is_the_answers(recipe):
    def losses(weight):
        answers = {"batch": 8, "length": 120, "weight": weight}
        task = UnifiedTask(recipe(answers=answers), World())
        batch = next(task.batches(0, World()))
        task.before_step(batch, {}, moment())
        return {
            name: value.item()
            for name, value in task.loss("model", task.model, batch, moment()).items()
        }

    one, none = losses(0.25), losses(0.0)
    assert one["loss"] == pytest.approx(one["painting"] + 0.25 * one["answering"])
    assert none["loss"] == none["painting"] == one["painting"]


def test_a_resumed_run_is_the_run_it_would_have_been(recipe, tmp_path):
    three = recipe(run={"steps": 3})
    train_unified(three, tmp_path / "whole", bar=False)
    train_unified(recipe(), tmp_path / "parts", bar=False)
    train_unified(three, tmp_path / "parts", resume=True, bar=False)
    whole, parts = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes()
        for name in ("whole", "parts")
    )
    assert whole == parts
    assert [e["event"] for e in read(tmp_path / "parts")].count("resume") == 1


def test_mistakes_are_named(recipe):
    for changes, complaint in (
        ({"batch": 0}, "answers.batch must be at least 1"),
        ({"weight": -1.0}, "answers.weight must be at least 0"),
        ({"length": 1}, "answers.length must be at least 2"),
    ):
        with pytest.raises(ValueError, match=f"train: {complaint}"):
            recipe(answers=changes)
    with pytest.raises(ValueError, match="answers.batch must be a multiple of 3"):
        UnifiedTask(recipe(answers={"batch": 4}, run={"accumulate": 3}), World())
    with pytest.raises(ValueError, match="train: model: template must be one of"):
        UnifiedTask(recipe(model={**tiny.MODEL, "template": "x"}), World())
    with pytest.raises(ValueError, match="at least 264 tokens, .* got 262"):
        UnifiedTask(recipe(model={**tiny.MODEL, "image_start": 262}), World())


@pytest.mark.parametrize("name", recipes("unified"))
def test_every_recipe_that_ships_is_whole(name):
    found = load(UnifiedRecipe, name)
    assert found.run.steps and found.answers.batch % 2 == 0
