"""Where positions are, which is what queries and keys are turned by.

"sequence", as published: a position's place is its number, and cells above each other
are as many numbers apart as their scale has columns. "grid": a place is a row and a
column, each of which turns half of the pairs. A word's are both its number; a token's
are where the middle of its cell lies on the last grid, behind the words. One distance
in a picture is one turn, on every scale and everywhere, so what is learned of one place
holds for all.
Source: rows and columns, RoPE for vision transformers, arXiv:2403.13298; over scales,
Infinity, arXiv:2412.04431.
"""

import torch
from torch import Tensor

from tokenflow.tokenizer.scales import Scales, token_counts

PLACES = ("sequence", "grid")


def middles(scales: Scales, device: torch.device | None = None) -> Tensor:
    """Return row and column of the middle of each token's cell, [N, 2] float32.

    In cells of the last scale, from the middle of its first one.
    """
    parts = []
    for scale in scales:
        axes = [
            (torch.arange(cells, dtype=torch.float32, device=device) + 0.5)
            * (most / cells)
            - 0.5
            for cells, most in zip(scale, scales[-1], strict=True)
        ]
        parts.append(torch.cartesian_prod(*axes))
    return torch.cat(parts)


def of_words(numbers: Tensor, kind: str) -> Tensor:
    """Return places of words, given their numbers [B, T] int64.

    Args:
        numbers: In the sequence.
        kind: One of PLACES.

    Returns:
        The numbers, or [B, T, 2] float32 on the grid.
    """
    if kind == "sequence":
        return numbers
    return torch.stack([numbers, numbers], dim=-1).float()


def of_painting(
    prompt: int,
    length: int,
    scales: Scales,
    kind: str,
    device: torch.device | None = None,
) -> Tensor:
    """Return places of a prompt, the picture painted behind it, and what follows.

    Args:
        prompt: Positions of the prompt, the last of which predicts the first token.
        length: All positions, or the first so many, at least those of the prompt.
        scales: Of the picture.
        kind: One of PLACES.
        device: Of the result.

    Returns:
        [1, length] int64, or [1, length, 2] float32 on the grid.
    """
    places = of_words(torch.arange(length, device=device)[None], kind)
    if kind == "grid":
        behind = middles(scales, device)[1 : 1 + length - prompt]
        places[:, prompt : prompt + len(behind)] = prompt + behind
    return places


def of_conversation(
    numbers: Tensor, pictured: Tensor, scales: Scales, kind: str
) -> Tensor:
    """Return places of words and of pictures among them, shown on the last scale.

    Args:
        numbers: [B, T] int64, in the sequence.
        pictured: [B, T] bool, true where pictures are, whole ones.
        scales: The last of which has their cells.
        kind: One of PLACES.

    Returns:
        The numbers, or [B, T, 2] float32 on the grid.
    """
    places = of_words(numbers, kind)
    if kind == "sequence":
        return places
    count = token_counts(scales)[-1]
    cell = (pictured.long().cumsum(1) - 1).clamp_min(0) % count
    begin = (numbers - cell)[..., None]
    cells = middles(scales, numbers.device)[-count:]
    return torch.where(pictured[..., None], begin + cells[cell], places)
