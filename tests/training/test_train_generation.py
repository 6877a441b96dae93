"""Training a generation model: it learns, is judged, written and gone on with."""

import pytest
import torch
from generation_cases import small_tokenizer
from squares import Squares, batch_of

from tokenflow import TokenFlowForGeneration
from tokenflow.training import generation as training
from tokenflow.training.config import build, load
from tokenflow.training.generation import (
    GenerationRecipe,
    GenerationTask,
    train_generation,
)
from tokenflow.training.log import read
from tokenflow.training.task import Moment
from tokenflow.training.world import World

MODEL = {
    "language": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "scales": [1, 2, 4],
    "codebook_size": 64,
    "code_width": 12,
    "image_start": 300,
    "text_length": 12,
}


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


@pytest.fixture(autouse=True)
def squares(monkeypatch):
    two = Squares(0), Squares(10_000)
    monkeypatch.setattr(training, "open_pictures", lambda *given: two)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tokenizer"
    torch.manual_seed(0)
    small_tokenizer((1, 2, 4)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def recipe(tokenizer):
    def made(**sections):
        run = {"batch": 4, "steps": 2, "tensorboard": False, "average": 0.0}
        values = {
            "model": MODEL,
            "tokenizer": tokenizer,
            "words": {"captions": 20},
            "data": {"heldout_pictures": 6},
            "drawn": {"pictures": 2, "guidance": 1.0},
            "optimizer": {"name": "adamw", "learning_rate": 3e-3},
            **sections,
        }
        values["run"] = run | sections.get("run", {})
        return build(GenerationRecipe, values)

    return made


def moment(step=0):
    return Moment(step, 0.0, 0, World())


def test_a_run_is_a_model_that_draws(recipe, tmp_path):
    facts = train_generation(recipe(run={"evaluate_every": 1}), tmp_path, bar=False)
    assert facts["steps"] == 2 and 0 <= facts["accuracy_4x4"] <= 1
    assert len([*(tmp_path / "pictures").glob("drawn-*.png")]) == 2
    model = TokenFlowForGeneration.from_pretrained(tmp_path / "model")
    generator = torch.Generator().manual_seed(0)
    (picture,) = model.generate("a red square", generator=generator)
    assert picture.size == (16, 16)
    files = [*(tmp_path / "model").rglob("*.safetensors")]
    assert len(files) == 2  # the tokenizer is beside it


def test_every_parameter_learns_and_the_tokenizer_does_not(recipe):
    task = GenerationTask(recipe(), World())
    before = task.model.image_tokenizer.fingerprint()
    batch = {**batch_of(range(4)), "number": torch.arange(4)}
    task.loss("model", task.model, batch, moment())["loss"].backward()
    unused = {n for n, p in task.model.named_parameters() if p.grad is None}
    assert not unused
    assert not any(p.requires_grad for p in task.model.image_tokenizer.parameters())
    assert not task.model.image_tokenizer.training
    assert task.model.image_tokenizer.fingerprint() == before


def test_tokens_are_the_tokenizers_whatever_the_precision(recipe):
    task = GenerationTask(recipe(), World())
    images = batch_of(range(4))["image"]
    plain = task.tokens(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task.tokens(images), plain)
    assert plain.shape == (4, 21) and not plain.requires_grad


def test_the_loss_falls_and_the_scales_add_up(recipe):
    task = GenerationTask(recipe(drawn={"pictures": 0}), World())
    first = task.judge(None, moment())
    optimizer = torch.optim.Adam(task.model.parameters(), 3e-3)
    batch = {**batch_of(range(8)), "number": torch.arange(8)}
    losses = []
    for step in range(25):
        optimizer.zero_grad()
        loss = task.loss("model", task.model, batch, moment(step))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    found = task.judge(None, moment())
    assert found["loss"] < first["loss"]
    for name in ("loss", "accuracy"):
        parts = sum(n * found[f"{name}_{s}x{s}"] for n, s in ((1, 1), (4, 2), (16, 4)))
        assert parts / 21 == pytest.approx(found[name], rel=1e-5)


def test_dropped_captions_are_the_empty_prompt(recipe):
    task = GenerationTask(recipe(words={"captions": 20, "dropped": 1.0}), World())
    seen = []

    def call(prefix, *rest):
        seen.append(prefix)
        return task.model(prefix, *rest)

    batch = {**batch_of(range(2)), "number": torch.arange(2)}
    task.loss("model", call, batch, moment())
    assert torch.equal(seen[0], task.prefix(["", ""]))


def test_a_resumed_run_is_the_run_it_would_have_been(recipe, tmp_path):
    three = recipe(run={"steps": 3})
    train_generation(three, tmp_path / "whole", bar=False)
    train_generation(recipe(), tmp_path / "parts", bar=False)
    train_generation(three, tmp_path / "parts", resume=True, bar=False)
    whole, parts = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes()
        for name in ("whole", "parts")
    )
    assert whole == parts
    assert [e["event"] for e in read(tmp_path / "parts")].count("resume") == 1


def test_a_model_can_be_gone_on_with(recipe, tmp_path):
    train_generation(recipe(run={"steps": 1}), tmp_path, bar=False)
    made = GenerationTask(recipe(init=str(tmp_path / "model")), World())
    old = TokenFlowForGeneration.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(v, old[n]) for n, v in made.model.state_dict().items())


def test_mistakes_are_named(recipe, tokenizer):
    with pytest.raises(ValueError, match="train: preset must be one of"):
        recipe(preset="maxi")
    with pytest.raises(ValueError, match="train: drawn.passes must be one of"):
        recipe(drawn={"passes": 4})
    with pytest.raises(ValueError, match="train: model: .*text_length must be ≥ 1"):
        GenerationTask(recipe(model={**MODEL, "text_length": 0}), World())
    with pytest.raises(ValueError, match="has no tokenizer_config.json"):
        GenerationTask(recipe(words={"tokenizer": tokenizer}), World())
    with pytest.raises(ValueError, match="at least 261 tokens, the model has 100"):
        GenerationTask(recipe(model={**MODEL, "image_start": 100}), World())


def test_the_recipes_that_ship_are_as_published():
    found = load(GenerationRecipe, "published")
    assert (found.words.dropped, found.words.first_sentence) == (0.1, 0.2)
    assert (found.optimizer.learning_rate, found.optimizer.clip) == (5e-4, 0.5)
    assert (found.optimizer.weight_decay, found.optimizer.warmup) == (0.1, 5000)
    assert load(GenerationRecipe, "mini").run.steps
