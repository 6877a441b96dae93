"""The schedule of the pyramid, as the ops read it: one list of (height, width) pairs.

`indices` holds the scales end to end, coarse to fine, L = Σ height · width, row-major
in each.
"""

from __future__ import annotations

from collections.abc import Sequence

Pairs = list[tuple[int, int]]


def as_pairs(
    op: str, scales: Sequence[int | Sequence[int]], name: str = "scales"
) -> Pairs:
    """Read side lengths or (height, width) pairs; every side must be at least 1."""
    if not isinstance(scales, Sequence):
        raise ValueError(f"{op}: {name} must be a sequence of scales, got {scales!r}")
    pairs: Pairs = []
    for scale in scales:
        if isinstance(scale, int):
            sides: tuple[int, ...] = (scale, scale)
        else:
            sides = tuple(scale) if isinstance(scale, Sequence) else ()
        if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
            raise ValueError(
                f"{op}: {name} must be side lengths or (height, width) pairs, "
                f"got {scale!r} among them"
            )
        if min(sides) < 1:
            raise ValueError(f"{op}: {name} must be at least 1, got {scale!r}")
        pairs.append((sides[0], sides[1]))
    if not pairs:
        raise ValueError(f"{op}: {name} must name at least one scale, got none")
    return pairs


def flat(pairs: Pairs) -> list[int]:
    """[(h0, w0), (h1, w1), …] -> [h0, w0, h1, w1, …], as the ops take it."""
    return [side for pair in pairs for side in pair]


def paired(sides: Sequence[int]) -> Pairs:
    """Undo `flat`."""
    return list(zip(sides[::2], sides[1::2], strict=True))


def tokens(pairs: Pairs) -> int:
    """Return L, the number of tokens of a schedule."""
    return sum(height * width for height, width in pairs)


def prefix(op: str, pairs: Pairs, length: int) -> Pairs:
    """Return the leading scales that hold exactly `length` tokens."""
    allowed = []
    for count in range(1, len(pairs) + 1):
        allowed.append(tokens(pairs[:count]))
        if allowed[-1] == length:
            return pairs[:count]
    raise ValueError(
        f"{op}: indices must hold a whole number of scales, that is [B, L] with L one "
        f"of {allowed}, got L = {length}"
    )
