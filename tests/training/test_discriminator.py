"""The patch discriminator: published sizes, values and games; numbers by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from tokenflow.training.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    adopt_weight,
    discriminator_loss,
    generator_loss,
)


@pytest.mark.parametrize("name", ["patchgan_0", "patchgan_1"])
def test_logits_and_statistics_are_those_recorded(name, golden):
    case = golden(name)
    made = PatchDiscriminator(case.meta["ndf"])
    made.load_state_dict(case.weights())
    with torch.no_grad():
        calm = made.eval()(case["in/x"])
        busy = made.train()(case["in/x"])
    torch.testing.assert_close(calm, case["out/y_eval"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(busy, case["out/y_train"], atol=1e-5, rtol=1e-5)
    norm = made.main[3]
    for ours, theirs in (
        (norm.running_mean, "out/bn_running_mean_after"),
        (norm.running_var, "out/bn_running_var_after"),
    ):
        torch.testing.assert_close(ours, case[theirs], atol=1e-6, rtol=1e-5)


def test_it_has_the_published_size_and_names():
    made = PatchDiscriminator()
    assert sum(p.numel() for p in made.parameters()) == 2_765_633
    shapes = {k: tuple(v.shape) for k, v in made.state_dict().items() if v.ndim == 4}
    assert shapes == {
        "main.0.weight": (64, 3, 4, 4),
        "main.2.weight": (128, 64, 4, 4),
        "main.5.weight": (256, 128, 4, 4),
        "main.8.weight": (512, 256, 4, 4),
        "main.11.weight": (1, 512, 4, 4),
    }
    biases = [k for k in made.state_dict() if k.endswith("bias")]
    assert biases == [f"main.{i}.bias" for i in (0, 3, 6, 9, 11)]


@pytest.mark.parametrize(("size", "side"), [(224, 26), (256, 30), (384, 46)])
def test_logits_are_as_many_as_published(size, side):
    with torch.device("meta"):
        made = PatchDiscriminator()
        assert made(torch.empty(1, 3, size, size)).shape == (1, 1, side, side)


def test_first_weights_are_the_published_draws():
    torch.manual_seed(0)
    made = PatchDiscriminator()
    for index, middle in ((0, 0.0), (2, 0.0), (8, 0.0), (3, 1.0), (9, 1.0)):
        weight = made.main[index].weight
        error = 4 / math.sqrt(weight.numel())
        assert abs(weight.mean().item() - middle) < 0.02 * error
        assert weight.std().item() == pytest.approx(0.02, rel=error)
    assert all(made.main[i].bias.abs().max() == 0 for i in (3, 6, 9))


def test_group_norm_judges_each_picture_alone():
    torch.manual_seed(0)
    x = torch.randn(3, 3, 32, 32)
    alone = PatchDiscriminator(8, norm="group").train()
    torch.testing.assert_close(alone(x)[:1], alone(x[:1]))
    assert not list(alone.buffers())
    together = PatchDiscriminator(8, norm="batch").train()
    assert not torch.allclose(together(x)[:1], together(x[:1]), atol=1e-3)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_smallest_picture_gives_one_logit(layers):
    made = PatchDiscriminator(4, layers, norm="group").eval()
    side = made.smallest
    assert made(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=f"H and W at least {side}, got"):
        made(torch.zeros(1, 3, side, side - 1))


def test_games_are_those_recorded(golden):
    case = golden("gan_losses_0")
    real, fake = case["in/real"], case["in/fake"]

    def close(ours, theirs):
        assert ours.item() == pytest.approx(case[theirs].item(), abs=1e-6)

    close(discriminator_loss("hinge", real, fake), "out/hinge_d")
    close(discriminator_loss("vanilla", real, fake), "out/vanilla_d")
    close(generator_loss("hinge", fake), "out/hinge_g")
    assert adopt_weight(0.5, 9, 10) == case["out/adopt_before"].item()
    assert adopt_weight(0.5, 10, 10) == case["out/adopt_at"].item()


def test_the_recorded_non_saturating_game_has_its_arguments_swapped(golden):
    """What is recorded is a cross-entropy of labels, with logits in their place."""
    case = golden("gan_losses_0")
    real, fake = case["in/real"], case["in/fake"]
    entropy = F.binary_cross_entropy_with_logits
    swapped = entropy(torch.ones_like(real), real.sigmoid())
    swapped = (swapped + entropy(torch.zeros_like(fake), fake.sigmoid())) / 2
    assert swapped.item() == pytest.approx(case["out/nonsat_d"].item(), abs=1e-6)
    constant = entropy(torch.zeros(1), torch.rand(1))  # whatever was redrawn
    assert constant.item() == pytest.approx(math.log(2), abs=1e-6)
    swapped = entropy(torch.ones_like(fake), fake)
    assert swapped.item() == pytest.approx(case["out/nonsat_g"].item(), abs=1e-6)

    ours = discriminator_loss("non_saturating", real, fake)
    right = entropy(real, torch.ones_like(real))
    right = (right + entropy(fake, torch.zeros_like(fake))) / 2
    torch.testing.assert_close(ours, right)
    right = entropy(fake, torch.ones_like(fake))
    torch.testing.assert_close(generator_loss("non_saturating", fake), right)


def test_games_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert discriminator_loss("hinge", real, fake).item() == (0.25 + 1.0) / 2
    zero = torch.zeros(2)
    for game in ("vanilla", "non_saturating"):
        value = discriminator_loss(game, zero, zero).item()
        assert value == pytest.approx(math.log(2))
    assert generator_loss("vanilla", fake).item() == 1.0
    value = generator_loss("non_saturating", zero).item()
    assert value == pytest.approx(math.log(2))


def test_the_adaptive_weight_by_hand():
    last = torch.tensor([3.0, 4.0], requires_grad=True)
    plain, faint = last.square().sum() / 2, last.sum() * 0.0
    adversarial = -(last * torch.tensor([0.0, 2.0])).sum()
    weight = adaptive_weight(plain, adversarial, last)  # 5 / 2
    assert weight.item() == pytest.approx(5 / 2.0001)
    assert not weight.requires_grad
    assert adaptive_weight(plain, faint, last).item() == 1e4  # 5 / 1e-4, clamped
    assert adaptive_weight(faint, adversarial, last).item() == 0.0


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        PatchDiscriminator(0)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        PatchDiscriminator(8, 0)
    with pytest.raises(ValueError, match=r"norm must be one of \['batch', 'group'\]"):
        PatchDiscriminator(8, norm="layer")
    logits = torch.zeros(2)
    with pytest.raises(ValueError, match="discriminator_loss: game must be one of"):
        discriminator_loss("wgan", logits, logits)
    with pytest.raises(ValueError, match="generator_loss: game must be one of"):
        generator_loss("wgan", logits)
