"""The tokenizer's loss: recorded values and gradients, numbers by hand, who learns."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tokenflow.training.discriminator import PatchDiscriminator
from tokenflow.training.losses import LossConfig, TokenizerLoss
from tokenflow.training.perceptual import OrientedEnergy

RECORDED = ["vqloss_before_start", "vqloss_after_start", "vqloss_1"]
PLAIN = {"perceptual": "none", "semantic_weight": 0.0, "adversarial_start": 1}


class Absolute(nn.Module):
    """Mean |a − b| of each pair."""

    def forward(self, a, b):
        return (a - b).abs().mean(dim=(1, 2, 3))


def made(redrawn, rebuilt=None, quantizer=(0.0, 0.0, 0.0)):
    names = ("vq_loss", "commitment_loss", "entropy_loss")
    losses = dict(zip(names, map(torch.tensor, quantizer), strict=True))
    return SimpleNamespace(
        pixel_reconstruction=redrawn, semantic_reconstruction=rebuilt, **losses
    )


def pictures(seed=0, size=24):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, size, size, generator=generator) * 2 - 1


def critic(width=4, norm="group"):
    torch.manual_seed(3)
    return PatchDiscriminator(width, norm=norm)


@pytest.mark.parametrize("name", RECORDED)
def test_both_sides_are_those_recorded(name, golden):
    case = golden(name)
    meta = case.meta
    config = LossConfig(
        adversarial_start=meta["disc_start"], adversarial_weight=meta["disc_weight"]
    )
    loss = TokenizerLoss(config, Absolute())
    discriminator = PatchDiscriminator(4)
    prefix = "discriminator."
    discriminator.load_state_dict(
        {key.removeprefix(prefix): value for key, value in case.weights().items()}
    )
    discriminator.eval()
    redrawn = case["in/recon"].requires_grad_()
    rebuilt = case["in/sem_recon"].requires_grad_()
    output = made(redrawn, rebuilt, case["in/codebook_losses"].tolist())
    step = meta["global_step"]
    terms = loss.generator(
        output,
        case["in/inputs"],
        case["in/teacher_target"],
        step=step,
        discriminator=discriminator,
    )
    terms["loss"].backward()
    other = loss.discriminator(
        case["in/inputs"], redrawn, step=step, discriminator=discriminator
    )

    def close(ours, theirs):
        torch.testing.assert_close(
            ours.detach(), case[theirs].float(), atol=1e-6, rtol=1e-6
        )

    close(terms["loss"], "out/loss_gen")
    close(other["loss"], "out/loss_disc")
    close(terms["reconstruction"], "out/rec_loss")
    close(terms["perceptual"], "out/p_loss")
    close(terms["semantic"], "out/sem_loss")
    close(terms["adversarial_weight"], "out/disc_weight")
    if loss.plays(step):  # before the start it is not asked
        close(terms["adversarial"], "out/gen_adv")
    torch.testing.assert_close(redrawn.grad, case["out/grad_recon"])
    torch.testing.assert_close(rebuilt.grad, case["out/grad_sem"])


def test_a_sum_worked_by_hand():
    images = torch.zeros(1, 3, 24, 24)
    redrawn = torch.full_like(images, 0.5)
    rebuilt, target = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]])
    config = LossConfig(
        reconstruction_weight=2.0,
        perceptual_weight=3.0,
        adversarial_weight=0.25,
        adversarial_start=7,
        semantic_weight=10.0,
    )
    loss = TokenizerLoss(config, Absolute())
    terms = loss.generator(
        made(redrawn, rebuilt, (0.1, 0.2, 0.3)),
        images,
        target,
        step=7,
        discriminator=lambda x: x.mean(dim=(1, 2, 3)) * 4,
    )
    by_hand = {
        "reconstruction": 0.25,
        "perceptual": 0.5,
        "semantic": 1 - 24 / 25,
        "adversarial": -2.0,
        "adversarial_weight": 0.25,
        "vq": 0.1,
        "commitment": 0.2,
        "entropy": 0.3,
        "loss": 2 * 0.25 + 3 * 0.5 + 10 * 0.04 - 0.25 * 2 + 0.6,
    }
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(by_hand, abs=1e-6)
    other = loss.discriminator(
        images, redrawn, step=7, discriminator=lambda x: x.mean(dim=(1, 2, 3)) * 4
    )
    by_hand = {"loss": 0.5, "discriminator": 2.0, "real": 0.0, "fake": 2.0}
    assert {k: v.item() for k, v in other.items()} == by_hand  # ½ (1 + 3), a quarter


@pytest.mark.parametrize(
    ("choice", "value"),
    [
        ({"reconstruction": "l1"}, 0.5),
        ({"reconstruction": "l2"}, 0.25),
        ({"semantic": "l2", "semantic_weight": 1.0}, 0.25 + 1.0),
        ({"semantic": "cosine", "semantic_weight": 1.0}, 0.25 + 0.04),
    ],
    ids=str,
)
def test_each_choice_by_hand(choice, value):
    config = LossConfig(**{**PLAIN, "adversarial_weight": 0.0, **choice})
    rebuilt, target = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]])
    output = made(torch.full((1, 3, 8, 8), 0.5), rebuilt)
    terms = TokenizerLoss(config).generator(
        output, torch.zeros(1, 3, 8, 8), target, step=1
    )
    assert terms["loss"].item() == pytest.approx(value, abs=1e-6)


def test_no_teacher_means_no_semantic_term():
    config = LossConfig(perceptual="none", adversarial_weight=0.0)
    images = pictures()
    terms = TokenizerLoss(config).generator(made(images + 0.1), images, None, step=1)
    assert terms["semantic"] == 0
    assert terms["loss"].item() == pytest.approx(0.01, abs=1e-6)


def test_the_game_starts_at_its_step():
    loss = TokenizerLoss(LossConfig(**{**PLAIN, "adversarial_start": 3}))
    images, asked = pictures(), []

    def discriminator(x):
        asked.append(len(x))
        return x.mean(dim=(1, 2, 3))

    for step in (1, 2):
        assert not loss.plays(step)
        terms = loss.generator(
            made(images), images, None, step=step, discriminator=discriminator
        )
        other = loss.discriminator(
            images, images, step=step, discriminator=discriminator
        )
        assert terms["adversarial_weight"] == terms["adversarial"] == 0
        assert other["loss"] == 0 and not asked
    assert loss.plays(3)
    loss.discriminator(images, images, step=3, discriminator=discriminator)
    assert asked == [2, 2]
    keys = loss.generator(
        made(images), images, None, step=3, discriminator=discriminator
    ).keys()
    assert keys == terms.keys()  # a log has the same columns all along


def test_the_critics_step_does_not_reach_the_tokenizer():
    loss, discriminator = TokenizerLoss(LossConfig(**PLAIN)), critic()
    redrawn = pictures(1).requires_grad_()
    other = loss.discriminator(pictures(), redrawn, step=1, discriminator=discriminator)
    other["loss"].backward()
    assert redrawn.grad is None
    weights = [p for p in discriminator.parameters() if p.ndim == 4]
    assert weights and all(p.grad.abs().sum() > 0 for p in weights)


def test_the_tokenizers_step_reaches_what_it_redrew_and_not_the_teacher():
    config = LossConfig(perceptual="stand-in", adversarial_start=1)
    loss, discriminator = TokenizerLoss(config), critic()
    redrawn, rebuilt, target = (
        x.requires_grad_()
        for x in (pictures(1), torch.randn(2, 4, 6), torch.randn(2, 4, 6))
    )
    images = pictures()
    terms = loss.generator(
        made(redrawn, rebuilt), images, target, step=1, discriminator=discriminator
    )
    parts = {}
    for name in ("reconstruction", "perceptual", "adversarial"):
        (parts[name],) = torch.autograd.grad(terms[name], redrawn, retain_graph=True)
        assert parts[name].abs().sum() > 0, name
    terms["loss"].backward()
    whole = parts["reconstruction"] + parts["perceptual"] + 0.5 * parts["adversarial"]
    torch.testing.assert_close(redrawn.grad, whole)
    assert rebuilt.grad.abs().sum() > 0
    assert target.grad is None


def test_the_adaptive_weight_balances_the_last_layer():
    config = LossConfig(**{**PLAIN, "adaptive": True, "adversarial_weight": 0.8})
    images, last = torch.zeros(1, 3, 8, 8), torch.tensor(0.5, requires_grad=True)
    redrawn = last * torch.ones(1, 3, 8, 8)  # d mse / d last = 2 · last = 1
    terms = TokenizerLoss(config).generator(
        made(redrawn),
        images,
        None,
        step=1,
        discriminator=lambda x: 4 * x.mean(dim=(1, 2, 3)),  # ∂ adversarial = −4
        last_layer=last,
    )
    weight = 0.8 / (4 + 1e-4)
    assert terms["adversarial_weight"].item() == pytest.approx(weight, rel=1e-6)
    terms["loss"].backward()
    assert last.grad.item() == pytest.approx(1 - 4 * weight, rel=1e-5)
    assert not terms["adversarial_weight"].requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_and_narrow_pictures_change_no_loss(dtype):
    """Every term is computed in float32: on values that bfloat16 holds, the same."""
    config = LossConfig(perceptual="stand-in", adversarial_start=1)
    loss, discriminator = TokenizerLoss(config), critic()
    images, redrawn = pictures().to(dtype), pictures(1).to(dtype)
    tokens = torch.randn(2, 2, 4, 6).to(dtype)

    def both():
        out = made(redrawn, tokens[0])
        terms = loss.generator(
            out, images, tokens[1], step=1, discriminator=discriminator
        )
        other = loss.discriminator(images, redrawn, step=1, discriminator=discriminator)
        return [*terms.values(), *other.values()]

    plain = both()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = both()
    assert all(x.dtype == torch.float32 for x in narrow)
    assert all(map(torch.equal, plain, narrow))


def test_what_is_measured_by_default_is_what_the_config_names():
    assert TokenizerLoss(LossConfig(perceptual="none")).perceptual is None
    stand_in = TokenizerLoss(LossConfig(perceptual="stand-in"))
    assert isinstance(stand_in.perceptual, OrientedEnergy)
    assert not stand_in.state_dict()
    with pytest.raises(ValueError, match="'lpips' needs the paths vgg and heads"):
        TokenizerLoss(LossConfig())
    assert TokenizerLoss(LossConfig(perceptual_weight=0.0)).perceptual is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reconstruction": "l3"}, "reconstruction must be one of"),
        ({"perceptual": "vgg"}, "perceptual must be one of"),
        ({"adversarial": "wgan"}, "adversarial must be one of"),
        ({"semantic": "kl"}, "semantic must be one of"),
        ({"semantic_weight": -1.0}, "semantic_weight must be finite and at least 0"),
        ({"perceptual_weight": float("nan")}, "perceptual_weight must be finite"),
        ({"adversarial_start": 0}, "adversarial_start must be at least 1"),
    ],
)
def test_a_wrong_config_is_named(changes, words):
    with pytest.raises(ValueError, match=f"LossConfig: {words}"):
        LossConfig(**changes)


def test_wrong_arguments_are_named():
    loss = TokenizerLoss(LossConfig(**{**PLAIN, "semantic_weight": 1.0}))
    images = pictures()
    with pytest.raises(ValueError, match="discriminator must be given from step 1"):
        loss.generator(made(images), images, None, step=1)
    with pytest.raises(ValueError, match="pixel_reconstruction must have the shape"):
        loss.generator(made(images[:1]), images, None, step=1)
    target = torch.zeros(2, 4, 6)
    with pytest.raises(ValueError, match=r"target, \[2, 4, 6\], got \[2, 4, 5\]"):
        loss.generator(made(images, torch.zeros(2, 4, 5)), images, target, step=1)
    with pytest.raises(ValueError, match="reconstruction must have the shape of"):
        loss.discriminator(images, images[:1], step=1, discriminator=critic())
    adaptive = TokenizerLoss(LossConfig(**PLAIN, adaptive=True))
    with pytest.raises(ValueError, match="last_layer must be given"):
        adaptive.generator(made(images), images, None, step=1, discriminator=critic())
