"""The published variants' recipes: the paper's values, the published sizes, and steps
that move all that should move and nothing else, in models shrunk to a test's size.
"""

from collections import Counter

import pytest
import torch
from torch import nn

from tokenflow import TokenFlowTokenizer
from tokenflow.tokenizer import teachers
from tokenflow.tokenizer.semantic import SEMANTIC_ENCODERS
from tokenflow.tokenizer.teachers import Teacher
from tokenflow.training.config import load
from tokenflow.training.tokenizer import TokenizerRecipe, train_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

FROM_TEACHER = ("clip_b_224", "vitamin_xl_256", "siglip_so400m_384")
PUBLISHED = {  # parameters, those frozen in the semantic encoder, tokens, steps
    "clip_b_224": (181_902_251, 0, 561, 1_000_000),
    "clip_b_256_enhanced": (376_569_643, 85_799_424, 817, None),
    "vitamin_xl_256": (559_964_139, 0, 817, 500_000),
    # the last layer, the norm behind it and the pooling head
    "siglip_so400m_384": (554_009_963, 30_480_160, 2227, 500_000),
}
SMALL = {
    "clip_b_224": ({"width": 32, "layers": 2, "heads": 2, "image_size": 64}, 64),
    "vitamin_xl_256": (
        {
            "width": 32,
            "stem_widths": [16, 16],
            "stem_depths": [1, 1],
            "layers": 1,
            "heads": 2,
        },
        64,
    ),
    # 56 = 4 · 14 pixels for the encoder, 64 = 4 · 16 for the pixel branch
    "siglip_so400m_384": (
        {"width": 32, "layers": 3, "heads": 2, "mlp_width": 48, "image_size": 56},
        56,
    ),
}
SMALL["clip_b_256_enhanced"] = SMALL["clip_b_224"]


def shrunk(name, *changes):
    """The recipe with a model, a batch and a start of the game for a test."""
    encoder, side = SMALL[name]
    decoder = {"width": 32, "grid": 4, "depth": 1, "heads": 2}
    pixel = {"width": 32, "blocks": 1}
    model = {
        "image_size": side,
        "grid": 4,
        "scales": [1, 2, 4],
        "semantic_encoder": encoder,
        "semantic_decoder": decoder,
        "semantic_target": 16 if name.startswith("clip") else 32,
        "pixel_encoder": pixel,
        "pixel_decoder": {"width": 64, "blocks": 2} if "enhanced" in name else pixel,
        "pixel_latent": 32,
        "codebook_size": 64,
    }
    given = [f"model.{key}={value}" for key, value in model.items()]
    given += ["data.source=glyphs", "data.workers=0", "data.heldout_pictures=2"]
    given += ["loss.perceptual=stand-in", "loss.adversarial_start=2"]
    given += ["discriminator.width=8", "discriminator.layers=2"]
    given += ["run.batch=2", "run.steps=2", "run.tensorboard=false"]
    given += ["run.precision=float32"]  # float16 is slow on a CPU
    return load(TokenizerRecipe, name, [*given, *changes])


def teacher_of(recipe):
    """A random teacher of the size the recipe's model learns from."""
    config = recipe.config()
    arguments = dict(config.semantic_encoder)
    kind = arguments.pop("kind")
    torch.manual_seed(1)
    encoder = SEMANTIC_ENCODERS[kind](**arguments)
    if kind != "clip":
        return Teacher(kind, encoder)
    head = nn.Linear(encoder.width, config.semantic_target, bias=False)
    return Teacher(kind, encoder, head, config.semantic_target)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_recipe_is_of_the_published_size(name):
    parameters, frozen, tokens, _ = PUBLISHED[name]
    recipe = load(TokenizerRecipe, name)
    with torch.device("meta"):
        model = TokenFlowTokenizer(recipe.config())
    if recipe.train != "all":
        model.requires_grad_(False)
    count = Counter()
    for parameter in model.semantic_encoder.parameters():
        count[parameter.requires_grad] += parameter.numel()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert count[False] == frozen
    assert model.config.num_tokens == tokens


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_recipe_has_the_papers_values(name):
    recipe = load(TokenizerRecipe, name)
    steps = PUBLISHED[name][3]
    assert steps is None or recipe.run.steps == steps
    assert recipe.run.batch == 256 and recipe.run.minutes is None
    for optimizer in (recipe.optimizer, recipe.discriminator.optimizer):
        assert (optimizer.name, optimizer.learning_rate) == ("adam", 1e-4)
        assert (optimizer.betas, optimizer.clip) == ((0.9, 0.95), 1.0)
        assert optimizer.rate(0, 0.0) == optimizer.rate(9, 0.9) == 1e-4  # constant
        assert optimizer.weight_decay == 0
    assert recipe.config().commitment_weight == 0.25
    assert recipe.config().pixel_weight == 1.0  # w_dis
    loss = recipe.loss
    assert (loss.reconstruction_weight, loss.perceptual_weight) == (1.0, 1.0)
    assert (loss.perceptual, loss.adversarial) == ("lpips", "hinge")
    assert (loss.adversarial_weight, loss.adversarial_start) == (0.5, 20000)
    assert (recipe.data.augment, recipe.data.flip) == ("adm", True)
    if name in FROM_TEACHER:
        assert (loss.semantic, loss.semantic_weight) == ("cosine", 1.0)
        assert recipe.teacher.start and recipe.codebook.start == "random"
        assert recipe.codebook.revive_after == 0 and not recipe.centre


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_reader_must_give_can_be_given(name):
    given = {"data.source": "/pictures", "loss.vgg": "/vgg.pth", "loss.heads": "/h.pth"}
    if name in FROM_TEACHER:
        given["teacher.source"] = "/teacher"
    else:
        given["init"] = "/model"
    recipe = load(TokenizerRecipe, name, [f"{k}={v}" for k, v in given.items()])
    assert (recipe.data.source, recipe.loss.vgg) == ("/pictures", "/vgg.pth")
    assert recipe.loss.heads == "/h.pth"
    assert (recipe.teacher.source or recipe.init) in ("/teacher", "/model")
    assert load(TokenizerRecipe, name, ["run.precision=bfloat16"]).run.batch == 256


def test_the_papers_ten_scales_can_be_asked_for():
    change = "model.scales=[1,2,3,4,6,8,10,12,14,16]"
    assert load(TokenizerRecipe, "vitamin_xl_256", [change]).config().num_tokens == 826


@pytest.mark.parametrize("name", FROM_TEACHER)
def test_a_step_moves_all_that_is_used_and_nothing_else(
    name, tmp_path, monkeypatch, emoji_font
):
    recipe = shrunk(name, "optimizer.learning_rate=0.01")
    teacher = teacher_of(recipe)
    asked = []
    monkeypatch.setattr(
        teachers, "load_teacher", lambda *source: asked.append(source) or teacher
    )
    facts = train_tokenizer(recipe, tmp_path)
    kind = recipe.config().semantic_encoder["kind"]
    assert asked == [(recipe.teacher.source, kind)] and facts["steps"] == 2
    begun = teacher.encoder.state_dict()
    ended = TokenFlowTokenizer.from_pretrained(str(tmp_path / "model"))
    unused = ("blocks.2.", "post_layernorm.", "head.")
    for key, value in ended.semantic_encoder.named_parameters():
        same = torch.equal(value.half(), begun[key].half())
        if kind == "siglip" and key.startswith(unused):
            assert same, key
        elif value.ndim > 1:
            assert not same, key
            assert (value - begun[key]).abs().max() < 0.05, key  # it began there


@pytest.mark.parametrize("name", FROM_TEACHER)
def test_every_trained_parameter_takes_a_gradient(name, monkeypatch, emoji_font):
    """What took none would stop DistributedDataParallel, which waits for it."""
    from tokenflow.training.task import Moment
    from tokenflow.training.tokenizer import TokenizerTask
    from tokenflow.training.world import World

    recipe = shrunk(name, "loss.adversarial_start=1")
    monkeypatch.setattr(teachers, "load_teacher", lambda *source: teacher_of(recipe))
    task = TokenizerTask(recipe, World())
    batch = next(task.batches(0, World()))
    for part, module in task.parts.items():
        losses = task.loss(part, module, batch, Moment(0, 0.0, 0, World()))
        losses["loss"].backward()
        waiting = [
            n
            for n, p in module.named_parameters()
            if p.requires_grad and p.grad is None
        ]
        assert waiting == []


def test_an_enhanced_decoder_is_learned_on_the_tokens_of_b(
    tmp_path, monkeypatch, emoji_font
):
    base = shrunk("clip_b_224")
    teacher = teacher_of(base)
    monkeypatch.setattr(teachers, "load_teacher", lambda *source: teacher)
    train_tokenizer(base, tmp_path / "base")
    init = tmp_path / "base" / "model"
    # twice the pixels: the position tables stay those of the base
    recipe = shrunk(
        "clip_b_256_enhanced", f"init={init}", "model.image_size=80", "model.grid=5"
    )
    train_tokenizer(recipe, tmp_path / "run")
    before = TokenFlowTokenizer.from_pretrained(str(init))
    after = TokenFlowTokenizer.from_pretrained(str(tmp_path / "run" / "model"))
    assert after.config.image_size == 80 and before.config.image_size == 64
    other = before.state_dict()
    for key, value in after.state_dict().items():
        if not key.startswith("pixel_decoder."):
            assert torch.equal(value, other[key]), key
    assert len(after.pixel_decoder.state_dict()) > len(
        before.pixel_decoder.state_dict()
    )
