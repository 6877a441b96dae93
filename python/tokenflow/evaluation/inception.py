"""The Inception network that FID is defined with, up to its 2048 pooled features.

It is Inception v3 in the form of the file `pt_inception-2015-12-05-6726825d.pth` (the
2015 TensorFlow graph in PyTorch; pytorch-fid and torch-fidelity read the same file).
Against the Inception v3 of torchvision, average pooling inside the blocks does not
count the padding, and the last block pools by maximum. Bytes become [0, 1], are resized
to 299 × 299 and shifted to [-1, 1]. The resize is pytorch-fid's, which the published
evaluation also uses: bilinear, by pixel centres, without smoothing. (The TensorFlow
graph aligns the first pixels' corners; torch-fidelity follows it there.)
Source: Szegedy et al. 2015, arXiv:1512.00567; Heusel et al. 2017, arXiv:1706.08500.
"""

import hashlib
import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow.evaluation import weights_file

SIDE = 299
WIDTH = 2048
PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"  # the end: how its SHA-256 starts
Size = int | tuple[int, int]


class Inception(nn.Module):
    """Pictures to the features of FID, frozen; `from_file` gives it its weights."""

    name = "Inception v3 (FID)"
    width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2, padding=0)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, padding=0)
        self.Mixed_5b = _BlockA(192, 32)
        self.Mixed_5c = _BlockA(256, 64)
        self.Mixed_5d = _BlockA(288, 64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b = _BlockC(768, 128)
        self.Mixed_6c = _BlockC(768, 160)
        self.Mixed_6d = _BlockC(768, 160)
        self.Mixed_6e = _BlockC(768, 192)
        self.Mixed_7a = _BlockD(768)
        self.Mixed_7b = _BlockE(1280, _average)
        self.Mixed_7c = _BlockE(2048, _maximum)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_file(cls, source: str | PathLike) -> "Inception":
        """Read the weights; the classifier, where the file has one, is left alone.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged, is not what the end of its name promises, or a
                weight in it is missing or has another shape.
        """
        found = weights_file.read(source, "Inception")
        check_digest(source)
        made = cls()
        wanted = made.state_dict()
        wanted = {k: v for k, v in wanted.items() if not k.endswith("batches_tracked")}
        weights_file.fill(wanted, found, source)
        return made

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] → float32 [B, 2048].

        Raises:
            ValueError: images have another shape.
            TypeError: images are not uint8.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"Inception: images must be [B, 3, H, W], got {list(images.shape)}"
            )
        if images.dtype != torch.uint8:
            raise TypeError(f"Inception: images must be uint8, got {images.dtype}")
        x = F.interpolate(images.float() / 255, size=(SIDE, SIDE), mode="bilinear")
        return self.features(2 * x - 1)

    def features(self, x: Tensor) -> Tensor:
        """[B, 3, 299, 299] in [-1, 1] → [B, 2048], the mean over the last map."""
        for name, step in self.named_children():
            x = step(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        return x.mean(dim=(2, 3))

    def train(self, mode: bool = True) -> "Inception":
        """Stay in evaluation; nothing here is to be trained."""
        return super().train(False)


def check_digest(source: str | PathLike) -> None:
    """Raise ValueError where a name ends in a SHA-256's start and the file has another.

    PyTorch's habit: `name-0123abcd.pth`. Other names promise nothing.
    """
    path = Path(source)
    promised = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if promised is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(promised[1]):
        raise ValueError(
            f"Inception: the SHA-256 of {path} must start with {promised[1]}, as its "
            f"name says, got {found[:8]}"
        )


class _Conv(nn.Module):
    """Convolution, batch normalisation, ReLU; padded to keep the size unless told."""

    def __init__(
        self,
        width: int,
        wider: int,
        kernel: Size,
        *,
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        height, length = (kernel, kernel) if isinstance(kernel, int) else kernel
        around = (height // 2, length // 2) if padding is None else padding
        self.conv = nn.Conv2d(
            width, wider, (height, length), stride, around, bias=False
        )
        self.bn = nn.BatchNorm2d(wider, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _BlockA(nn.Module):
    """35 × 35: 1×1, 5×5, two 3×3, and pooling."""

    def __init__(self, width: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(width, 64, 1)
        self.branch5x5_1 = _Conv(width, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5)
        self.branch3x3dbl_1 = _Conv(width, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3)
        self.branch_pool = _Conv(width, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.branch1x1(x)
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([one, five, three, self.branch_pool(_average(x))], dim=1)


class _BlockB(nn.Module):
    """35 × 35 to 17 × 17."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(width, 384, 3, stride=2, padding=0)
        self.branch3x3dbl_1 = _Conv(width, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, F.max_pool2d(x, 3, 2)], dim=1)


class _BlockC(nn.Module):
    """17 × 17: 7×7 as rows and columns, once and twice."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = _Conv(width, 192, 1)
        self.branch7x7_1 = _Conv(width, inner, 1)
        self.branch7x7_2 = _Conv(inner, inner, row)
        self.branch7x7_3 = _Conv(inner, 192, column)
        self.branch7x7dbl_1 = _Conv(width, inner, 1)
        self.branch7x7dbl_2 = _Conv(inner, inner, column)
        self.branch7x7dbl_3 = _Conv(inner, inner, row)
        self.branch7x7dbl_4 = _Conv(inner, inner, column)
        self.branch7x7dbl_5 = _Conv(inner, 192, row)
        self.branch_pool = _Conv(width, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        pooled = self.branch_pool(_average(x))
        return torch.cat([self.branch1x1(x), seven, twice, pooled], dim=1)


class _BlockD(nn.Module):
    """17 × 17 to 8 × 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(width, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2, padding=0)
        self.branch7x7x3_1 = _Conv(width, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        seven = self.branch7x7x3_4(seven)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], dim=1)


class _BlockE(nn.Module):
    """8 × 8: 3×3 split into a row and a column side by side, once and deeper."""

    def __init__(self, width: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.branch1x1 = _Conv(width, 320, 1)
        self.branch3x3_1 = _Conv(width, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, row)
        self.branch3x3_2b = _Conv(384, 384, column)
        self.branch3x3dbl_1 = _Conv(width, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3)
        self.branch3x3dbl_3a = _Conv(384, 384, row)
        self.branch3x3dbl_3b = _Conv(384, 384, column)
        self.branch_pool = _Conv(width, 192, 1)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        deep = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(deep),
            self.branch3x3dbl_3b(deep),
            self.branch_pool(self.pool(x)),
        ]
        return torch.cat(parts, dim=1)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)
