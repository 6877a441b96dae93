"""Pictures compared by looks rather than by values: which measure a run takes.

LPIPS where its two files of weights are at hand; elsewhere a stand-in of ours that
needs no file, no label and no training. The squared error forgives blur, which
removes what an eye misses first, and punishes a shift by half a pixel, which no eye
sees. The stand-in asks instead how much is going on around each position, in four
directions and at up to four sizes, and says nothing of where within a wave it goes on.
Source: energy of quadrature pairs, Adelson and Bergen 1985; similarity of magnitudes,
as in Xue et al. 2014, arXiv:1308.3052; the combination is ours.
"""

import math
from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow.evaluation.lpips import LPIPS, check_pair

KINDS = ("lpips", "stand-in", "none")

_DIRECTIONS, _SIZE, _WAVELENGTH, _SIGMA = 4, 7, 3.2, 1.6  # of the filters, in pixels
_LEVELS, _SMALLEST = 4, 8  # halvings, and the smallest side that is still looked at
_OPPONENTS = (  # grey, red against green, blue against yellow; and what each weighs
    ((0.299, 0.587, 0.114), 4 / 6),
    ((0.5, -0.5, 0.0), 1 / 6),
    ((-0.25, -0.25, 0.5), 1 / 6),
)
_FAINT = 0.02  # amplitudes below it hardly count; the picture's range is 2
_ROUND = 1e-4  # added to the energy, so that its root has a gradient at 0


class OrientedEnergy(nn.Module):
    """The stand-in: how differently two pictures are textured, between 0 and 1.

    Both pictures become a pyramid of three opponent colours. At each level four pairs
    of 7×7 wave filters, a quarter of a wave apart, give amplitudes: a and b at one
    position, direction and colour. The distance is the mean of
    (a − b)² / (a² + b² + c²): by how much they differ, whatever their strength, as a
    change is easier seen in a calm place than in a busy one.

    It is blind to evenly changed brightness and colour, and to black and white
    exchanged: use it beside a reconstruction loss, not in its place.
    """

    def __init__(self) -> None:
        super().__init__()
        colours = torch.tensor([mix for mix, _ in _OPPONENTS])
        weights = torch.tensor([weight for _, weight in _OPPONENTS])
        row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        self.register_buffer("colours", colours, persistent=False)
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("waves", _waves(), persistent=False)
        self.register_buffer("smooth", torch.outer(row, row), persistent=False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the distance of each pair.

        Args:
            images: [B, 3, H, W] in [-1, 1], H and W at least 8.
            others: The same shape. Differentiable in both.

        Returns:
            [B] float32 in [0, 1].

        Raises:
            ValueError: The shapes differ or do not fit.
        """
        check_pair("OrientedEnergy", images, others, smallest=_SMALLEST)
        with torch.autocast(images.device.type, enabled=False):
            pairs = zip(self._amplitudes(images), self._amplitudes(others), strict=True)
            levels = [self._apart(a, b) for a, b in pairs]
        return torch.stack(levels).mean(dim=0)

    def _apart(self, a: Tensor, b: Tensor) -> Tensor:
        apart = (a - b).square() / (a.square() + b.square() + _FAINT**2)
        return apart.mean(dim=(2, 3, 4)) @ self.weights

    def _amplitudes(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → for each level [B, 3 colours, 4 directions, h, w]."""
        level = torch.einsum("oc,bchw->bohw", self.colours, images.float())
        found = []
        while len(found) < _LEVELS and min(level.shape[-2:]) >= _SMALLEST:
            maps = level.flatten(0, 1)[:, None]
            sine = F.conv2d(_padded(maps, _SIZE // 2), self.waves)
            energy = sine.unflatten(1, (_DIRECTIONS, 2)).square().sum(dim=2)
            amplitude = (energy + _ROUND).sqrt() - _ROUND**0.5
            found.append(amplitude.unflatten(0, level.shape[:2]))
            smaller = F.conv2d(_padded(maps, 2), self.smooth[None, None], stride=2)
            level = smaller[:, 0].unflatten(0, level.shape[:2])
        return found


def _waves() -> Tensor:
    """Return [2 · directions, 1, 7, 7]: cosine and sine under a bell, without mean."""
    side = torch.arange(_SIZE) - _SIZE // 2
    y, x = torch.meshgrid(side.double(), side.double(), indexing="ij")
    bell = torch.exp(-(x * x + y * y) / (2 * _SIGMA**2))
    waves = []
    for k in range(_DIRECTIONS):
        angle = math.pi * k / _DIRECTIONS
        across = x * math.cos(angle) + y * math.sin(angle)
        phase = 2 * math.pi * across / _WAVELENGTH
        cosine = bell * phase.cos()
        cosine = cosine - bell * (cosine.sum() / bell.sum())
        waves += [cosine, bell * phase.sin()]
    return (2 * torch.stack(waves) / bell.sum())[:, None].float()


def _padded(maps: Tensor, width: int) -> Tensor:
    return F.pad(maps, (width,) * 4, mode="replicate")


def make(
    kind: str,
    vgg: str | PathLike | None = None,
    heads: str | PathLike | None = None,
) -> nn.Module | None:
    """Return the measure of that name: two pictures [B, 3, H, W] → [B].

    Args:
        kind: "lpips", "stand-in" or "none", for which None is returned.
        vgg: For "lpips": path of torchvision's VGG16 weights.
        heads: For "lpips": path of the linear heads, v0.1.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: The kind is unknown, "lpips" has not both paths, or a file does not
            hold what it should.
    """
    if kind not in KINDS:
        raise ValueError(f"perceptual: kind must be one of {list(KINDS)}, got {kind!r}")
    if kind == "none":
        return None
    if kind == "stand-in":
        return OrientedEnergy()
    if vgg is None or heads is None:
        raise ValueError(
            "perceptual: 'lpips' needs the paths vgg and heads of its weights, got "
            f"{vgg} and {heads}; without them choose 'stand-in', or 'none'"
        )
    return LPIPS.from_files(vgg, heads)
