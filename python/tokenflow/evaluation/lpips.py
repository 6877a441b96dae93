"""LPIPS: how different two pictures look, from the features of a trained network.

Both pictures go through VGG16. At five depths every position's features are scaled to
unit length, their squared differences weighted per channel, averaged over positions
and summed. Smaller is more alike. The weights of both parts are read from files:

- the trunk: torchvision's `vgg16` state dict (`features.0.weight` …);
- the heads: LPIPS v0.1, as the `lpips` package and taming-transformers publish them
  (`lin0.model.1.weight` …; taming's file has md5 d507d7349b931f0638a25a48a722f98a).

There is no dropout, and `train()` changes nothing.
Source: Zhang et al. 2018, arXiv:1801.03924.
"""

from collections.abc import Sequence
from os import PathLike

import torch
from torch import Tensor, nn

from tokenflow.evaluation import weights_file

WIDTHS = (64, 128, 256, 512, 512)  # channels at the five depths
_CONVOLUTIONS = (2, 2, 3, 3, 3)  # before each of them; pooling in between
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPS = 1e-10


class LPIPS(nn.Module):
    """The distance itself, frozen; `LPIPS.from_files` gives it its weights.

    As made here all weights are zero, and so is every distance.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _vgg16()
        self.heads = nn.ParameterList(torch.zeros(width) for width in WIDTHS)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1), False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1), False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_files(cls, vgg: str | PathLike, heads: str | PathLike) -> "LPIPS":
        """Read both files: `.safetensors`, or PyTorch's own format, read safely.

        Args:
            vgg: torchvision's state dict of VGG16; the classifier is ignored.
            heads: The five linear heads of LPIPS v0.1.

        Raises:
            FileNotFoundError: A file is not there; the message names it.
            ValueError: A file is damaged, or a weight in it is missing or has another
                shape; the message names file and weights.
        """
        made = cls()
        trunk = {
            f"features.{key}": value for key, value in made.trunk.named_parameters()
        }
        weights_file.fill(trunk, weights_file.read(vgg, "LPIPS"), vgg)
        rows = {
            f"lin{i}.model.1.weight": head.view(1, -1, 1, 1)
            for i, head in enumerate(made.heads)
        }
        weights_file.fill(rows, weights_file.read(heads, "LPIPS"), heads)
        return made

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the distance of each pair.

        Args:
            images: [B, 3, H, W] in [-1, 1], H and W at least 16.
            others: The same shape. Differentiable in both.

        Returns:
            [B] float32, at least 0 with the published heads.

        Raises:
            ValueError: The shapes differ or do not fit.
        """
        check_pair("LPIPS", images, others, smallest=16)
        with torch.autocast(images.device.type, enabled=False):
            return self.compare(
                self.features(self.scaled(images)), self.features(self.scaled(others))
            )

    def scaled(self, images: Tensor) -> Tensor:
        """[-1, 1] → what the trunk was trained on."""
        return (images.float() - self.shift) / self.scale

    def features(self, scaled: Tensor) -> list[Tensor]:
        """Return the maps after relu1_2, 2_2, 3_3, 4_3 and 5_3, widths `WIDTHS`."""
        found, x = [], scaled
        for index, step in enumerate(self.trunk):
            x = step(x)
            if index in _DEPTHS:
                found.append(x)
        return found

    def compare(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """Return [B] from the maps [B, C, h, w] of either picture."""
        total = torch.zeros(features[0].shape[0], device=features[0].device)
        for one, two, head in zip(features, others, self.heads, strict=True):
            apart = (_unit(one) - _unit(two)).square()
            total = total + torch.einsum("bchw,c->bhw", apart, head).mean(dim=(1, 2))
        return total

    def train(self, mode: bool = True) -> "LPIPS":
        """Stay in evaluation; nothing here is to be trained."""
        return super().train(False)


def _vgg16() -> nn.Sequential:
    """The convolutions of VGG16 under torchvision's numbers, up to relu5_3."""
    steps: list[nn.Module] = []
    width = 3
    for depth, (wider, count) in enumerate(zip(WIDTHS, _CONVOLUTIONS, strict=True)):
        if depth:
            steps.append(nn.MaxPool2d(2))
        for _ in range(count):
            steps += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()]
            width = wider
    for step in steps:
        if isinstance(step, nn.Conv2d):
            nn.init.zeros_(step.weight)
            nn.init.zeros_(step.bias)
    return nn.Sequential(*steps)


_DEPTHS = (3, 8, 15, 22, 29)  # where in the trunk the compared maps come out


def _unit(x: Tensor) -> Tensor:
    """Scale every position's channels to unit length; its gradient is finite at 0."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + _EPS)


def check_pair(name: str, images: Tensor, others: Tensor, smallest: int) -> None:
    """Raise ValueError unless both are [B, 3, H, W] of one shape, large enough."""
    fits = images.shape == others.shape and images.ndim == 4 and images.shape[1] == 3
    if not fits or min(images.shape[-2:]) < smallest:
        raise ValueError(
            f"{name}: both must be [B, 3, H, W] of one shape with H and W at least "
            f"{smallest}, got {list(images.shape)} and {list(others.shape)}"
        )
