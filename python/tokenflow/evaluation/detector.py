"""What is in a picture of the small world: a small network that names and finds.

A convolutional network answers, for each cell of 4 × 4 pixels, which objects have their
centre there, of which colour they are and how far their edges reach; peaks of the first
answer are the objects found. It judges pictures that were drawn from words, as GenEval
has a detector do it. `training.detector` trains it.
Source: ours; centres as peaks of one map per name as in CenterNet, arXiv:1904.07850.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow import checkpoint
from tokenflow.evaluation import weights_file
from tokenflow.tokenizer.processing import from_uint8

CELL = 4  # pixels
MODEL_TYPE = "tokenflow_detector"
THRESHOLD = 0.25  # least confidence of an object; focal loss keeps it low
SAME = 0.6  # two boxes that have more than this in common are one object


@dataclass(frozen=True)
class Detection:
    """One object that was found."""

    name: str
    colour: str | None  # None: the object has its own colours
    box: tuple[float, float, float, float]  # left, top, right, bottom in [0, 1]
    confidence: float = 1.0


class Detector(nn.Module):
    """Pictures → the objects in them.

    Args:
        names: What can be found.
        colours: What it can be coloured in, besides its own colours.
        width: Channels at full resolution of the cells; deeper ones have twice that.
        blocks: Residual blocks of the deepest level.

    Raises:
        ValueError: There is no name, or width is no multiple of 16.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        colours: tuple[str, ...],
        width: int = 64,
        blocks: int = 4,
    ) -> None:
        super().__init__()
        if not names or width % 16 or width < 16 or blocks < 1:
            raise ValueError(
                "Detector: names must be one or more, width a multiple of 16 and "
                f"blocks at least 1, got {len(names)}, {width} and {blocks}"
            )
        self.names, self.colours = tuple(names), tuple(colours)
        self.width, self.blocks = width, blocks
        self.fine = nn.Sequential(
            _conv(3, width // 2, 2), _Block(width // 2), _conv(width // 2, width, 2)
        )
        self.cells = nn.Sequential(_Block(width), _Block(width))
        self.deep = nn.Sequential(
            _conv(width, 2 * width, 2), *(_Block(2 * width) for _ in range(blocks))
        )
        self.join = nn.Sequential(_conv(3 * width, 2 * width), _Block(2 * width))
        outputs = len(names) + len(colours) + 1 + 4
        self.head = nn.Conv2d(2 * width, outputs, 1)
        with torch.no_grad():  # few cells are a centre
            self.head.bias[: len(names)].fill_(-4.0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Look at pictures.

        Args:
            images: [B, 3, H, W] in [-1, 1], sides multiples of 8.

        Returns:
            Logits of a centre [B, names, H/4, W/4]; logits of a colour, the last for
            none [B, colours + 1, …]; distances of left, top, right and bottom edge from
            the cell's middle, in sides of the picture [B, 4, …].

        Raises:
            ValueError: It is no such batch.
        """
        if (
            images.ndim != 4
            or images.shape[1] != 3
            or any(side % (2 * CELL) or not side for side in images.shape[2:])
        ):
            raise ValueError(
                "Detector: images must be [B, 3, H, W] with sides that are multiples "
                f"of {2 * CELL}, got {list(images.shape)}"
            )
        x = self.cells(self.fine(images))
        deep = F.interpolate(self.deep(x), scale_factor=2.0, mode="nearest")
        found = self.head(self.join(torch.cat([x, deep], dim=1)))
        sizes = [len(self.names), len(self.colours) + 1, 4]
        centres, colours, edges = found.split(sizes, dim=1)
        return centres, colours, F.softplus(edges.float() - 2)

    @torch.no_grad()
    def detect(
        self, images: Tensor, threshold: float = THRESHOLD
    ) -> list[list[Detection]]:
        """Return the objects of each picture, the surest first.

        Args:
            images: uint8 [B, 3, H, W], or float32 in [-1, 1].
            threshold: Least confidence.
        """
        if images.dtype == torch.uint8:
            images = from_uint8(images)
        centres, colours, edges = self(images.to(self.head.weight.device))
        sure = centres.float().sigmoid()
        peaks = (sure == F.max_pool2d(sure, 3, 1, 1)) & (sure >= threshold)
        hue = colours.argmax(1).cpu()
        sure, edges = sure.cpu(), edges.cpu()
        found: list[list[Detection]] = [[] for _ in range(len(images))]
        height, width = sure.shape[2:]
        for b, c, y, x in peaks.nonzero().tolist():
            left, top, right, bottom = edges[b, :, y, x].tolist()
            u, v = (x + 0.5) / width, (y + 0.5) / height
            box = (u - left, v - top, u + right, v + bottom)
            index = int(hue[b, y, x])
            colour = self.colours[index] if index < len(self.colours) else None
            score = sure[b, c, y, x].item()
            found[b].append(Detection(self.names[c], colour, box, score))
        return [_distinct(those) for those in found]

    def save_pretrained(
        self, folder: str | os.PathLike, weights: dict[str, Tensor] | None = None
    ) -> None:
        """Write config.json and model.safetensors; a broken write leaves the old.

        Args:
            folder: Made if it is not there.
            weights: Instead of its own.
        """
        from safetensors.torch import save_file

        config = {
            "model_type": MODEL_TYPE,
            "names": self.names,
            "colours": self.colours,
            "width": self.width,
            "blocks": self.blocks,
        }
        held = self.state_dict() if weights is None else weights
        held = {name: value.cpu().contiguous() for name, value in held.items()}
        with checkpoint.replacing(folder) as made:
            text = json.dumps(config, indent=2) + "\n"
            (made / "config.json").write_text(text, encoding="utf-8")
            save_file(held, made / "model.safetensors")

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike) -> "Detector":
        """Read a detector that was trained here, as float32.

        Args:
            name: "mini", which ships, or a folder.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged or something else.
        """
        folder = checkpoint.shipped(name, "detector") or Path(name)
        file = folder / "config.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"Detector: {folder} must be 'mini' or the folder of a trained one, "
                "there is no config.json"
            )
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        kind = config.pop("model_type", None)
        if kind != MODEL_TYPE:
            raise ValueError(
                f"Detector: {folder} must have model_type {MODEL_TYPE}, got {kind!r}"
            )
        model = cls(**config)
        path = folder / "model.safetensors"
        weights_file.fill(model.state_dict(), weights_file.read(path, "Detector"), path)
        return model.eval()


def _conv(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
        nn.GroupNorm(8, outer),
        nn.SiLU(),
    )


class _Block(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(width, width),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.GroupNorm(8, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.body(x))


def overlap(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float]
) -> float:
    """Return what two boxes have in common, as a share of what they cover together."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (sum(areas) - common) if common else 0.0


def _distinct(found: list[Detection]) -> list[Detection]:
    """Return the surest of those that are at one place, the surest first."""
    kept: list[Detection] = []
    for one in sorted(found, key=lambda one: -one.confidence):
        if all(overlap(one.box, other.box) <= SAME for other in kept):
            kept.append(one)
    return kept
