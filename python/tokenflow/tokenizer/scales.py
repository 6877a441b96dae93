"""The schedule of the pyramid: which grids, how many tokens, which part of them.

A schedule goes from coarse to fine. Each scale is a side length, or a (height, width)
pair for a picture that is not square; here it is always the pair. `indices` holds the
scales end to end, so scale i owns the tokens from the sum of the earlier areas on.
Source: TokenFlow, arXiv:2412.03069, section 3; the schedule of VAR, arXiv:2404.02905.
"""

import random
from collections.abc import Sequence

Scales = tuple[tuple[int, int], ...]


def as_pairs(scales: Sequence[int | Sequence[int]]) -> Scales:
    """Return `scales` as (height, width) pairs.

    Args:
        scales: Side lengths or pairs, coarse to fine, each at least 1.

    Raises:
        ValueError: The schedule is empty, or an entry is no positive side or pair.
    """
    pairs = []
    for scale in scales:
        sides = (scale, scale) if isinstance(scale, int) else tuple(scale)
        if len(sides) != 2 or any(
            not isinstance(side, int) or isinstance(side, bool) or side < 1
            for side in sides
        ):
            raise ValueError(
                "scales: each must be a side length or a (height, width) pair of "
                f"positive integers, got {scale!r}"
            )
        pairs.append((sides[0], sides[1]))
    if not pairs:
        raise ValueError("scales: at least one is needed, got none")
    return tuple(pairs)


def token_counts(scales: Scales) -> list[int]:
    """Return the number of tokens of each scale."""
    return [height * width for height, width in scales]


def for_grid(scales: Scales, native: int, grid: tuple[int, int]) -> Scales:
    """Return the schedule of a square `native` grid, stretched onto `grid`.

    Each axis is scaled by itself and rounded to the nearest whole number (halves go
    up), never below 1; the native grid gives the schedule back unchanged. So a
    picture twice as wide as high has scales twice as wide as high.

    Args:
        scales: The schedule for a native × native grid.
        native: Side of that grid.
        grid: (height, width) of the grid at hand.
    """
    height, width = grid
    return tuple(
        (_stretch(sh, height, native), _stretch(sw, width, native)) for sh, sw in scales
    )


def _stretch(side: int, to: int, native: int) -> int:
    return max(1, (2 * side * to + native) // (2 * native))


def prefix(scales: Scales, tokens: int) -> Scales:
    """Return the leading scales that hold exactly `tokens` tokens.

    Raises:
        ValueError: `tokens` ends inside a scale, is 0, or is more than there are.
    """
    total, ends = 0, []
    for count, area in enumerate(token_counts(scales), start=1):
        total += area
        ends.append(total)
        if total == tokens:
            return scales[:count]
    raise ValueError(
        "decode: indices must hold whole scales of the schedule, that is "
        f"{_listed(ends)} tokens, got {tokens}"
    )


def _listed(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}"


def drop_one(scales: Scales, rng: random.Random) -> Scales:
    """Return the schedule without one scale, drawn uniformly from all but the first.

    Training leaves one out now and then, so that no scale is indispensable; the final
    grid stays as it is even when its own scale is the one left out. A schedule of one
    scale is returned whole.

    Source: the published training code (the paper does not mention it).
    """
    if len(scales) < 2:
        return scales
    out = rng.randint(1, len(scales) - 1)
    return scales[:out] + scales[out + 1 :]
