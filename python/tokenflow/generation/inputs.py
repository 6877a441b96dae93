"""What the language model reads for a picture, and what may look at what.

A scale is predicted from the scales before it: their entries are summed at growing
resolution (each sum enlarged to the next grid, the next entries added), and the
positions of scale i read the enlarged sum of the scales before i, all of them at once.
So a picture of N tokens takes N − 1 positions after the prompt; the first token is
predicted from the prompt's last position. The decoder, unlike this cascade, enlarges
every scale to the final grid at once.
Published schedules begin with one token. Where the first scale has more (a tokenizer
of a single scale has no other), its tokens are predicted one after another, row by row,
each from the entry before it: next-token prediction, as for any tokens of one scale.
Source: TokenFlow, arXiv:2412.03069, section 3.4, and the published code; the
prediction of next scales is VAR's, arXiv:2404.02905, of next tokens LlamaGen's,
arXiv:2406.06525.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow.tokenizer.scales import Scales, as_pairs, token_counts


def enlarge(total: Tensor, scale: tuple[int, int]) -> Tensor:
    """Return the sum so far on the next grid, by bicubic interpolation.

    Args:
        total: [B, C, h, w] float32.
        scale: (height, width) of the next grid.
    """
    return F.interpolate(total, size=scale, mode="bicubic", align_corners=False)


def as_map(entries: Tensor, scale: tuple[int, int]) -> Tensor:
    """Return one scale's entries [B, sh·sw, C] as a map [B, C, sh, sw]."""
    return entries.transpose(1, 2).unflatten(2, scale)


def as_rows(total: Tensor) -> Tensor:
    """Return a map [B, C, h, w] as rows [B, h·w, C], the inverse of `as_map`."""
    return total.flatten(2).transpose(1, 2)


def cascade(entries: Tensor, scales: Scales) -> Tensor:
    """Return what the positions behind the prompt read, from all entries.

    Args:
        entries: [B, N, C] float32, scale after scale.
        scales: Of these entries.

    Returns:
        [B, N − 1, C]: in the first scale the entry before (its first token reads the
        prompt), in each other one the enlarged sum of all scales before it.
    """
    parts = entries.split(token_counts(scales), dim=1)
    total, rows = as_map(parts[0], scales[0]), [parts[0][:, :-1]]
    for scale, part in zip(scales[1:], parts[1:], strict=True):
        before = enlarge(total, scale)
        rows.append(as_rows(before))
        total = before + as_map(part, scale)
    return torch.cat(rows, dim=1)


def levels(scales: Scales) -> Tensor:
    """Return the number of each image position's scale, [N] int64.

    Position j is the one that predicts token j: the prompt's last for j = 0.
    """
    counts = torch.tensor(token_counts(scales))
    return torch.arange(len(scales)).repeat_interleave(counts)


def turns(scales: Scales) -> Tensor:
    """Return when each token is predicted, [N] int64.

    Those of the first scale one by one, those of each other scale at once.
    """
    first, level = token_counts(scales)[0], levels(scales)
    return torch.cat([torch.arange(first), level[first:] + first - 1])


def attended(text: Tensor, scales: Scales, tail: int = 1) -> Tensor:
    """Return which position may look at which, as the published model has it.

    Everything looks back at what is no padding; image positions also look at all that
    are predicted together with them, and never at later ones.

    Args:
        text: [B, P] bool, true where the prompt is no padding.
        scales: Schedule of the picture.
        tail: Positions after those that predict image tokens: a placeholder, then
            what ends a picture.

    Returns:
        [B, T, T] bool, queries × keys, T = P + N − 1 + tail.
    """
    prompt, turn = text.shape[1], turns(scales).to(text.device)
    length = prompt + len(turn) - 1 + tail
    real = F.pad(text, (0, length - prompt), value=True)
    back = torch.ones(length, length, dtype=torch.bool, device=text.device).tril()
    seen = back & real[:, None]
    image = slice(prompt - 1, prompt - 1 + len(turn))
    seen[:, image, image] = turn[:, None] >= turn
    return seen


def leading(scales: Scales, wanted: int | Sequence | None) -> Scales:
    """Return the first scales of a schedule: so many, or those listed.

    Raises:
        ValueError: `wanted` is no beginning of the schedule.
    """
    if wanted is None:
        return scales
    if isinstance(wanted, int):
        wanted = scales[:wanted] if 1 <= wanted <= len(scales) else ()
    pairs = as_pairs(wanted) if wanted else ()
    if not pairs or scales[: len(pairs)] != pairs:
        raise ValueError(
            "generate: scales must be the first few of the model's "
            f"{[list(s) for s in scales]} or their number, got {wanted!r}"
        )
    return pairs
