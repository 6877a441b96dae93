"""A sheet of originals over redrawn pictures, for the eye."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from tokenflow._files import writing
from tokenflow.evaluation.reconstruction import redraw
from tokenflow.tokenizer.model import TokenFlowTokenizer


def save_grid(
    model: TokenFlowTokenizer, images: Tensor, path: Path, *, columns: int = 8
) -> None:
    """Write a PNG: rows of originals, each over the row of its redrawn pictures.

    images: uint8 [N, 3, R, R]; a last row that is not full is left out.
    """
    if len(images) < columns:
        raise ValueError(
            f"save_grid: at least {columns} pictures are needed, got {len(images)}"
        )
    redrawn = redraw(model, images).images.cpu()
    rows = []
    for first in range(0, len(images) - columns + 1, columns):
        for pictures in (images, redrawn):
            rows.append(torch.cat(list(pictures[first : first + columns]), dim=2))
    sheet = torch.cat(rows, dim=1).permute(1, 2, 0).contiguous()
    picture = Image.fromarray(sheet.numpy())
    with writing(path) as beside:
        large = picture.resize((2 * picture.width, 2 * picture.height), 0)
        large.save(beside, format="PNG")
