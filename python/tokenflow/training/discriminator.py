"""A critic of patches, and the game it plays with the decoder.

Convolutions judge overlapping patches of a picture, real or redrawn, one logit each;
the decoder learns to raise the logits of what it redrew. Three games are known by
name: "hinge" (the published choice), "vanilla" (cross-entropy for the critic, the
bare logit for the decoder) and "non_saturating" (cross-entropy for both).
Source: PatchGAN, arXiv:1611.07004, in the form of VQGAN, arXiv:2012.09841; hinge,
arXiv:1705.02894. The published non-saturating functions hand logits and labels to the
cross-entropy in swapped order, by which the critic learns nothing from what was
redrawn; here they are in order.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAMES = ("hinge", "vanilla", "non_saturating")
NORMS = ("batch", "group")


class PatchDiscriminator(nn.Module):
    """One logit per patch: [B, 3, H, W] in [-1, 1] → [B, 1, h, w].

    With the default three layers a patch is 70×70 pixels wide, and 256×256 pixels give
    30×30 logits. Names of the weights are the published ones, so a published
    discriminator loads with `norm="batch"`.

    Batch norm compares a picture with those it came with: real and redrawn pictures are
    told apart by their batches, small batches make noise, and processes that train
    together keep statistics of their own. Group norm looks at each picture alone; the
    answer then depends on neither batch size nor number of processes.

    Args:
        width: Channels of the first layer; each further one has twice as many, at most
            eight times.
        layers: Layers that halve the picture, at least 1.
        norm: "batch" (published) or "group".

    Raises:
        ValueError: width or layers is below 1, or the norm is unknown.
    """

    def __init__(self, width: int = 64, layers: int = 3, norm: str = "batch") -> None:
        super().__init__()
        for argument, value in (("width", width), ("layers", layers)):
            if value < 1:
                raise ValueError(
                    f"PatchDiscriminator: {argument} must be at least 1, got {value}"
                )
        if norm not in NORMS:
            raise ValueError(
                f"PatchDiscriminator: norm must be one of {list(NORMS)}, got {norm!r}"
            )
        steps: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        widths = [width * min(2**n, 8) for n in range(layers + 1)]
        for n in range(1, layers + 1):
            stride = 2 if n < layers else 1
            steps += [
                nn.Conv2d(widths[n - 1], widths[n], 4, stride, 1, bias=False),
                _norm(norm, widths[n]),
                nn.LeakyReLU(0.2, True),
            ]
        steps.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.main = nn.Sequential(*steps)
        self.smallest = _smallest(layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as published: N(0, 0.02), those of norms N(1, 0.02)."""
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, 1, h, w].

        Raises:
            ValueError: The pictures are smaller than one patch needs.
        """
        if images.ndim != 4 or min(images.shape[-2:]) < self.smallest:
            raise ValueError(
                f"PatchDiscriminator: images must be [B, 3, H, W] with H and W at "
                f"least {self.smallest}, got {list(images.shape)}"
            )
        return self.main(images)


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(32, channels), channels)


def _smallest(layers: int) -> int:
    # Halved, 3 cells must be left: either convolution at the end takes one away.
    return 3 * 2**layers


def discriminator_loss(game: str, real: Tensor, fake: Tensor) -> Tensor:
    """Return what the critic is to make small, a scalar.

    "hinge": ½ (mean max(0, 1 − real) + mean max(0, 1 + fake)). The others: ½ (mean
    softplus(−real) + mean softplus(fake)), the cross-entropy of telling them apart.

    Args:
        game: One of `GAMES`.
        real: Logits of pictures, any shape.
        fake: Logits of what was redrawn, without gradient to the decoder.

    Raises:
        ValueError: There is no such game.
    """
    _check_game("discriminator_loss", game)
    if game == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def generator_loss(game: str, fake: Tensor) -> Tensor:
    """Return what the decoder is to make small, a scalar.

    "hinge" and "vanilla": −mean fake. "non_saturating": mean softplus(−fake).

    Args:
        game: One of `GAMES`.
        fake: Logits of what was redrawn, any shape.

    Raises:
        ValueError: There is no such game.
    """
    _check_game("generator_loss", game)
    if game == "non_saturating":
        return F.softplus(-fake).mean()
    return -fake.mean()


def _check_game(function: str, game: str) -> None:
    if game not in GAMES:
        raise ValueError(f"{function}: game must be one of {list(GAMES)}, got {game!r}")


def adopt_weight(weight: float, step: int, start: int) -> float:
    """Return `weight` from step `start` on, 0 before. Steps count from 1."""
    return weight if step >= start else 0.0


def adaptive_weight(plain: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Return how much the adversarial loss weighs as much as the others.

    ‖∇ plain‖ / (‖∇ adversarial‖ + 1e-4) at the decoder's last layer, at most 1e4.
    Processes that train together each find a weight of their own.
    Source: VQGAN, arXiv:2012.09841, equation 7.

    Args:
        plain: The decoder's other losses of the picture, a scalar whose graph is kept.
        adversarial: The scalar to be weighed; its graph is kept too.
        last_layer: Weight of the last convolution, requires_grad.

    Returns:
        A scalar without gradient.
    """
    norms = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
        for loss in (plain, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, 1e4).detach()
