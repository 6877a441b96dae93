"""Where positions are, which is what queries and keys are turned by.

"sequence", as published: a position is its number, and cells above each other are as
many numbers apart as a row has, on each scale another. "grid": a position is a row and
a column, each of which turns half of the pairs. A word's are both its number; a token's
are where the middle of its cell lies on the last grid, behind the words. So what lies
side by side is as far apart on every scale and everywhere in a picture, and what is
learned of one place holds for all.
Source: rows and columns, RoPE for vision transformers, arXiv:2403.13298; over scales,
Infinity, arXiv:2412.04431.
"""

import torch
from torch import Tensor

from tokenflow.tokenizer.scales import Scales, token_counts

ROTATIONS = ("sequence", "grid")


def spots(scales: Scales) -> Tensor:
    """Return the row and column of each token's middle, [N, 2] float32.

    In cells of the last scale, from the middle of its first one.
    """
    parts = []
    for scale in scales:
        axes = [
            (torch.arange(cells) + 0.5) * (most / cells) - 0.5
            for cells, most in zip(scale, scales[-1], strict=True)
        ]
        parts.append(torch.cartesian_prod(*axes))
    return torch.cat(parts)


def numbered(numbers: Tensor, rotation: str) -> Tensor:
    """Return places of words: [B, T] as they are, or [B, T, 2] float32 on the grid."""
    if rotation == "sequence":
        return numbers
    return numbers[..., None].expand(*numbers.shape, 2).float()


def painted(prompt: int, length: int, scales: Scales, rotation: str) -> Tensor:
    """Return places of a prompt, the picture painted behind it, and what follows.

    Args:
        prompt: Positions of the prompt, the last of which predicts the first token.
        length: All positions, or the first so many.
        scales: Of the picture.
        rotation: One of ROTATIONS.

    Returns:
        [1, length] int64, or [1, length, 2] float32 on the grid.
    """
    places = numbered(torch.arange(length)[None], rotation).contiguous()
    if rotation == "grid":
        behind = spots(scales)[1 : 1 + max(length - prompt, 0)]
        places[:, prompt : prompt + len(behind)] = prompt + behind
    return places


def shown(numbers: Tensor, pictures: Tensor, scales: Scales, rotation: str) -> Tensor:
    """Return places of conversations with pictures of the last scale's cells.

    Args:
        numbers: [B, T] int64, in the sequence.
        pictures: [B, T] bool, true where pictures are, whole ones.
        scales: The last of which they are shown on.
        rotation: One of ROTATIONS.

    Returns:
        [B, T] int64, or [B, T, 2] float32 on the grid.
    """
    places = numbered(numbers, rotation)
    if rotation == "sequence":
        return places
    count = token_counts(scales)[-1]
    cell = (pictures.long().cumsum(1) - 1).clamp_min(0) % count
    begin = (numbers - cell)[..., None]
    cells = spots(scales)[-count:].to(numbers.device)
    return torch.where(pictures[..., None], begin + cells[cell], places)
