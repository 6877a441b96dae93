"""Training a generation model: it learns, is judged, written and gone on with."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from generation_cases import small_tokenizer
from PIL import Image
from squares import Squares, batch_of, sample

from tokenflow import TokenFlowForGeneration, TokenFlowTokenizer
from tokenflow.tokenizer import tokfile
from tokenflow.tokenizer.processing import from_uint8
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
    opened = training.open_pictures

    def choose(data, *given):
        return two if data.source == "scenes" else opened(data, *given)

    monkeypatch.setattr(training, "open_pictures", choose)


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
    batch = batch_of(range(4))
    plain = task.tokens(batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task.tokens(batch), plain)
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

    def call(prefix, **rest):
        seen.append(prefix)
        return task.model(prefix, **rest)

    batch = {**batch_of(range(2)), "number": torch.arange(2)}
    task.loss("model", call, batch, moment())
    assert torch.equal(seen[0], task.prefix(["", ""], trimmed=True))


def test_targets_may_be_shared_by_entries_that_are_near(recipe):
    """As far apart as the temperature says: hardly any is the plain loss."""
    batch = {**batch_of(range(2)), "number": torch.arange(2)}
    losses = {}
    for name, targets in (
        ("plain", {}),
        ("cold", {"entries": 4, "temperature": 1e-6}),
        ("warm", {"entries": 4, "temperature": 0.5}),
    ):
        task = GenerationTask(recipe(near=targets), World())
        losses[name] = task.loss("model", task.model, batch, moment())["loss"]
    assert losses["cold"].item() == pytest.approx(losses["plain"].item(), rel=1e-5)
    assert losses["warm"].item() != pytest.approx(losses["plain"].item(), rel=1e-4)
    losses["warm"].backward()
    assert task.model.head.weight.grad.abs().sum() > 0


def test_noise_is_each_pictures_own_and_changes_no_first_target(recipe):
    """The same number draws the same, in whatever batch, whatever the precision."""
    task = GenerationTask(recipe(near={"noise": 0.5, "entries": 2}), World())
    batch = {**batch_of(range(3)), "number": torch.tensor([4, 5, 6])}
    clean = task.tokens(batch)
    found = task.painted(batch, moment())
    assert not torch.equal(found["indices"], clean)
    assert torch.equal(found["near"][:, 0, 0], clean[:, 0])
    assert not torch.equal(found["near"][..., 0], found["indices"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task.painted(batch, moment())["near"], found["near"])
    alone = {**batch_of([2]), "number": torch.tensor([6])}
    assert torch.equal(task.painted(alone, moment())["indices"][0], found["indices"][2])
    for other in (
        task.painted({**batch, "number": torch.tensor([4, 5, 7])}, moment()),
        task.painted(batch, moment(1)),
    ):
        assert not torch.equal(other["indices"][2], found["indices"][2])


def test_amounts_of_noise_are_drawn_evenly(recipe):
    task = GenerationTask(recipe(near={"noise": 0.5}), World())
    noise = task._noise({"number": torch.arange(200)}, moment())
    amounts = noise.flatten(1).std(dim=1)
    assert amounts.max() < 0.55 and abs(amounts.mean().item() - 0.25) < 0.03


def test_what_is_judged_has_no_noise(recipe):
    scores = [
        GenerationTask(recipe(near=near), World()).judge(None, moment())
        for near in ({}, {"noise": 0.5, "entries": 3})
    ]
    assert scores[0] == scores[1]


def test_a_head_may_begin_where_entries_are(recipe):
    heads = [
        GenerationTask(recipe(near={"head": size}), World()).model.head.weight
        for size in (0.0, 3.0)
    ]
    start = GenerationTask(recipe(), World()).model.config.image_start
    assert torch.equal(heads[0][:start], heads[1][:start])
    before, begun = (head[start:].norm().item() for head in heads)
    assert begun == pytest.approx(3 * before)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"entries": 0}, "near.entries must be at least 1, got 0"),
        ({"temperature": 0.0}, "near.temperature must be above 0, got 0.0"),
        ({"head": -1.0}, "near.head must be at least 0, got -1.0"),
        ({"noise": -0.1}, "near.noise must be at least 0, got -0.1"),
    ],
)
def test_targets_out_of_range_are_named(recipe, wrong, said):
    with pytest.raises(ValueError, match=said):
        recipe(near=wrong)


def test_padding_that_all_have_is_left_out_and_changes_nothing(recipe):
    task = GenerationTask(recipe(), World())
    texts = ["a cat", ""]
    whole, short = task.prefix(texts), task.prefix(texts, trimmed=True)
    cut = whole.shape[1] - short.shape[1]
    assert cut > 0 and torch.equal(whole[:, cut:], short)
    pad = task.model.config.pad_id
    assert (whole[:, :cut] == pad).all() and not (short[:, 0] == pad).all()
    tokens = task.tokens(batch_of(range(2)))
    with torch.no_grad():
        one, two = (task.model(p, tokens, task.suffix).logits for p in (whole, short))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


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


@pytest.fixture
def encoded(tokenizer, tmp_path):
    """A folder of pictures with captions, and one of the tokens of those pictures."""
    made = TokenFlowTokenizer.from_pretrained(tokenizer)
    folder, tokens = tmp_path / "pictures", tmp_path / "tokens"
    folder.mkdir()
    captions = {}
    for number in range(24):
        one, name = sample(number), f"{number % 3}/{number:02d}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(one["image"].permute(1, 2, 0).numpy()).save(folder / name)
        captions[name] = one["caption"]
        indices = made.encode(from_uint8(one["image"][None])).indices[0]
        facts = (made.scales, 64, made.fingerprint(), (16, 16))
        place = (tokens / name).with_suffix(".tok")
        tokfile.save(place, tokfile.Tokens(indices, *facts))
    for place in (folder, tokens):
        (place / "captions.json").write_text(json.dumps(captions))
    return folder, tokens


def test_tokens_made_before_teach_what_their_pictures_would(recipe, encoded):
    """The same batches, losses and scores; the text is learned from the same words."""
    tasks = []
    for folder in encoded:
        tasks.append(GenerationTask(recipe(data={"source": str(folder)}), World()))
    seen, read = (next(task.batches(3, World())) for task in tasks)
    assert seen["caption"] == read["caption"] and "image" not in read
    assert torch.equal(seen["number"], read["number"])
    assert torch.equal(tasks[0].tokens(seen), read["indices"])
    losses = [
        task.loss("model", task.model, batch, moment())["loss"].item()
        for task, batch in zip(tasks, (seen, read), strict=True)
    ]
    assert losses[0] == losses[1]
    assert tasks[0].judge(None, moment()) == tasks[1].judge(None, moment())


def test_a_run_on_tokens_needs_no_pictures_and_shows_what_it_drew(
    recipe, encoded, tmp_path
):
    shutil.rmtree(encoded[0])
    data = {"source": str(encoded[1]), "workers": 1}
    facts = train_generation(recipe(data=data), tmp_path / "run", bar=False)
    assert facts["steps"] == 2
    assert len([*(tmp_path / "run" / "pictures").glob("drawn-*.png")]) == 1


def test_tokens_of_another_tokenizer_are_refused_and_damaged_ones_replaced(
    recipe, encoded
):
    folder = encoded[1]
    with pytest.raises(ValueError, match="are of pictures, .* holds tokens"):
        GenerationTask(recipe(data={"source": str(folder), "flip": True}), World())
    with pytest.raises(ValueError, match="near.noise 0 where .* got 1 and 0.5"):
        made = recipe(data={"source": str(folder)}, near={"noise": 0.5})
        GenerationTask(made, World())
    last = folder / "2" / "23.tok"
    last.write_bytes(last.read_bytes()[:-9])
    task = GenerationTask(recipe(data={"source": str(folder)}), World())
    broken = [next(task.batches(step, World()))["broken"] for step in range(12)]
    assert sum(broken) > 0
    first = folder / "0" / "00.tok"
    held = tokfile.load(first)
    tokfile.save(first, replace(held, fingerprint="0123"))
    with pytest.raises(ValueError, match="train: data.source: .* made with model 0123"):
        GenerationTask(recipe(data={"source": str(folder)}), World())


def test_tokens_of_one_scale_train_save_and_draw(recipe, tmp_path):
    """A plain VQ tokenizer: sizes follow from it, tokens are predicted one by one."""
    torch.manual_seed(0)
    small_tokenizer((4,), semantic_dim=0, codebook_size=48).save_pretrained(
        tmp_path / "plain"
    )
    language = {"language": MODEL["language"], "image_start": 300, "text_length": 12}
    made = recipe(model=language, tokenizer=str(tmp_path / "plain"))
    task = GenerationTask(made, World())
    assert task.model.config.code_width == 4 and task.model.config.num_tokens == 16
    optimizer = torch.optim.Adam(task.model.parameters(), 3e-3)
    batch = {**batch_of(range(8)), "number": torch.arange(8)}
    losses = []
    for step in range(25):
        optimizer.zero_grad()
        loss = task.loss("model", task.model, batch, moment(step))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    facts = train_generation(made, tmp_path / "run", bar=False)
    assert 0 <= facts["accuracy_4x4"] == facts["accuracy"] <= 1
    model = TokenFlowForGeneration.from_pretrained(tmp_path / "run" / "model")
    (picture,) = model.generate("a red square")
    assert picture.size == (16, 16)


def test_mistakes_are_named(recipe, tokenizer):
    with pytest.raises(ValueError, match="train: preset must be one of"):
        recipe(preset="maxi")
    with pytest.raises(ValueError, match="train: drawn.passes must be one of"):
        recipe(drawn={"passes": 4})
    with pytest.raises(ValueError, match="train: model: .*text_length must be ≥ 1"):
        GenerationTask(recipe(model={**MODEL, "text_length": 0}), World())
    with pytest.raises(ValueError, match="has no tokenizer_config.json"):
        GenerationTask(recipe(words={"tokenizer": tokenizer}), World())
    with pytest.raises(ValueError, match="near.entries must be at most 64, .* got 65"):
        GenerationTask(recipe(near={"entries": 65}), World())
    with pytest.raises(ValueError, match="near.head must be 0 where init is given"):
        recipe(init="some", near={"head": 2.0})
    with pytest.raises(ValueError, match="image_start: .* at least 261 .* got 100"):
        GenerationTask(recipe(model={**MODEL, "image_start": 100}), World())


def test_the_recipes_that_ship_are_as_published():
    found = load(GenerationRecipe, "published")
    assert (found.words.dropped, found.words.first_sentence) == (0.1, 0.2)
    assert (found.optimizer.learning_rate, found.optimizer.clip) == (5e-4, 0.5)
    assert (found.optimizer.weight_decay, found.optimizer.warmup) == (0.1, 5000)
    assert load(GenerationRecipe, "mini").run.steps
