"""Training a tiny tokenizer: it learns, every phase of it, and its parts fit."""

import json

import pytest
import torch
from tiny_recipe import TINY, recipe

from tokenflow import TokenFlowTokenizer
from tokenflow.training.log import read
from tokenflow.training.task import Moment
from tokenflow.training.tokenizer import (
    TokenizerTask,
    build_model,
    grid,
    outer_blocks,
    train_tokenizer,
)
from tokenflow.training.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def font(emoji_font):
    return emoji_font


def steps(run, name):
    return [e[name] for e in read(run) if e["event"] == "step" and name in e]


def test_a_run_ends_with_a_model_that_loads_small(tmp_path):
    facts = train_tokenizer(recipe(), tmp_path)
    model = TokenFlowTokenizer.from_pretrained(str(tmp_path / "model"))
    assert facts["steps"] == 6 and facts["samples"] == 24 and facts["psnr"] > 5
    assert model.config.codebook_size == 128
    (stored,) = (tmp_path / "model").glob("*.safetensors")
    numbers = sum(p.numel() for p in model.parameters())
    assert stored.stat().st_size < 2.2 * numbers + 64 * 1024  # float16 but the books
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == [
        "heldout-00000006.png"
    ]
    with pytest.raises(FileExistsError, match="resume it, or name a new folder"):
        train_tokenizer(recipe(), tmp_path)


def test_the_log_counts_the_codebook_at_every_scale(tmp_path):
    train_tokenizer(recipe(), tmp_path)
    last = [e for e in read(tmp_path) if e["event"] == "step"][-1]
    assert {"usage", "usage/1x1", "usage/4x4", "perplexity/2x2", "revived"} <= set(last)
    assert 0 < last["usage"] <= 1


def test_a_discriminator_joins_at_its_step(tmp_path):
    loss = {"adversarial_weight": 0.5, "adversarial_start": 4, "adaptive": True}
    train_tokenizer(recipe(loss=loss), tmp_path)
    assert steps(tmp_path, "adversarial_weight")[:3] == [0, 0, 0]
    assert all(weight > 0 for weight in steps(tmp_path, "adversarial_weight")[3:])
    assert len(steps(tmp_path, "discriminator/loss")) == 3  # steps 4, 5, 6


def test_the_critic_does_not_learn_from_the_tokenizers_step():
    task = TokenizerTask(
        recipe(loss={"adversarial_weight": 0.5, "adversarial_start": 1}), World()
    )
    moment = Moment(0, 0.0, 0, World())
    batch = next(task.batches(0, World()))
    task.loss("model", task.model, batch, moment)["loss"].backward()
    critic = task.parts["discriminator"]
    assert all(p.grad is None and p.requires_grad for p in critic.parameters())
    model = [p.grad.clone() for p in task.model.parameters() if p.grad is not None]
    task.loss("discriminator", critic, batch, moment)["loss"].backward()
    assert all(p.grad is not None for p in critic.parameters())
    after = [p.grad for p in task.model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(model, after, strict=True))


def test_decoder_fine_tuning_moves_the_decoder_alone(tmp_path):
    train_tokenizer(recipe(), tmp_path / "first")
    init = str(tmp_path / "first" / "model")
    tuned = recipe(init=init, train="pixel_decoder", run={"steps": 2})
    train_tokenizer(tuned, tmp_path / "second")
    before = TokenFlowTokenizer.from_pretrained(init)
    after = TokenFlowTokenizer.from_pretrained(str(tmp_path / "second" / "model"))
    assert before.fingerprint() == after.fingerprint()
    moved = {
        name
        for name, value in before.state_dict().items()
        if not torch.equal(value, after.state_dict()[name])
    }
    assert all(name.startswith("pixel_decoder.") for name in moved)
    assert "pixel_decoder.conv_in.weight" in moved and len(moved) > 20


def test_an_enhanced_decoder_begins_anew_on_frozen_tokens(tmp_path):
    train_tokenizer(recipe(run={"steps": 1}), tmp_path / "first")
    init = str(tmp_path / "first" / "model")
    wide = {**TINY, "pixel_decoder": {"multipliers": [1, 1, 1, 1], "width": 64}}
    model = build_model(recipe(init=init, train="pixel_decoder", model=wide))
    first = TokenFlowTokenizer.from_pretrained(init)
    assert model.fingerprint() == first.fingerprint()
    sizes = [
        sum(p.numel() for p in m.pixel_decoder.parameters()) for m in (model, first)
    ]
    assert sizes[0] > 3 * sizes[1]


def test_another_model_is_no_beginning(tmp_path):
    train_tokenizer(recipe(run={"steps": 1}), tmp_path)
    init = str(tmp_path / "model")
    with pytest.raises(ValueError, match="differs in quantizer.pixel_book, quantizer"):
        build_model(recipe(init=init, model={**TINY, "codebook_size": 64}))


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"recompute": True}], ids=str)
def test_how_a_step_is_computed_changes_little(tmp_path, changes):
    for name, run in (("plain", {}), ("other", changes)):
        task = recipe(codebook={"start": "random"}, run={"steps": 1, **run})
        train_tokenizer(task, tmp_path / name)
    assert steps(tmp_path / "plain", "loss") == pytest.approx(
        steps(tmp_path / "other", "loss"), rel=1e-4
    )


def test_running_means_move_the_books(tmp_path):
    train_tokenizer(recipe(codebook={"learning": "ema"}), tmp_path)
    assert steps(tmp_path, "usage")[-1] > 0


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"preset": "maxi"}, "preset must be one of .* got 'maxi'"),
        ({"train": "all_of_it"}, "train must be one of"),
        ({"train": "pixel_decoder"}, "init must name the tokenizer"),
        ({"teacher": {"start": True}}, "teacher.start needs a teacher.source"),
        ({"loss": {"adaptive": True}, "run": {"parallel": "fsdp"}}, "take ddp"),
        ({"data": {"augment": "mirror"}}, "data.augment must be one of"),
        ({"data": {"workers": -1}}, "data.workers must be at least 0, got -1"),
    ],
    ids=str,
)
def test_a_recipe_that_does_not_fit_says_so(sections, words):
    with pytest.raises(ValueError, match=words):
        recipe(**sections)


def test_blocks_are_the_members_of_the_outermost_lists():
    model = build_model(recipe())
    names = {type(block).__name__ for block in outer_blocks(model)}
    assert names == {"Block", "Level"}


def test_a_grid_has_originals_above(tmp_path):
    white, black = torch.full((2, 3, 4, 4), 255), torch.zeros(2, 3, 4, 4)
    sheet = grid(white.to(torch.uint8), black.to(torch.uint8))
    assert sheet.size == (8, 8)
    assert sheet.getpixel((0, 0)) == (255,) * 3 and sheet.getpixel((7, 7)) == (0,) * 3


@pytest.mark.slow
def test_training_redraws_better_than_before(tmp_path):
    changes = {"log_every": 50, "average": 0.9}
    rate = {"learning_rate": 4e-3, "warmup": 20}
    judged = {"source": "glyphs", "heldout_pictures": 16}
    few = recipe(data=judged, run={"steps": 1, **changes})
    many = recipe(data=judged, optimizer=rate, run={"steps": 120, **changes})
    low = train_tokenizer(few, tmp_path / "few")["psnr"]
    high = train_tokenizer(many, tmp_path / "many")["psnr"]
    assert high > low + 1  # 1.5 dB when written


def test_the_recipe_beside_a_run_makes_it_again(tmp_path):
    train_tokenizer(recipe(run={"steps": 1}), tmp_path)
    from tokenflow.training.config import of_run
    from tokenflow.training.tokenizer import TokenizerRecipe

    assert of_run(TokenizerRecipe, tmp_path) == recipe(run={"steps": 1})
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["seed"] == 0
