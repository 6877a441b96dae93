"""Several conversations about the same pictures, read as one row.

What they begin with, pictures above all, is read once; what is each one's own stands
behind it, one after the other. No conversation sees another's own part, and positions
count as if it were alone, so a row says of each what a row of its own would say.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenflow.understanding.prompts import IGNORED

Talk = tuple[list[int], list[int]]  # ids and labels


class Row(NamedTuple):
    """One row of a batch.

    Args:
        ids, labels: See `prompts.tokenized`.
        images: uint8 [k, 3, R, R].
        forks: Where the own part of each of several conversations begins; the first is
            the length of what they share. Empty for one conversation.
    """

    ids: list[int]
    labels: list[int]
    images: Tensor
    forks: tuple[int, ...] = ()


def together(talks: Sequence[Talk], length: int) -> tuple[Talk, tuple[int, ...]]:
    """Return conversations as one row's ids and labels, and its forks.

    Args:
        talks: All begin alike, and nothing that is learned is among the first ids of
            their own parts.
        length: Positions at most; conversations that do not fit are left out, but the
            first is cut.
    """
    shared = min(map(_unlearned, talks))
    for at in range(shared):
        if len({ids[at] for ids, _ in talks}) > 1:
            shared = at
            break
    ids, labels = (part[:length] for part in talks[0])
    forks = [shared]
    for more, learned in talks[1:]:
        if len(ids) + len(more) - shared > length:
            continue
        forks.append(len(ids))
        ids, labels = ids + more[shared:], labels + learned[shared:]
    return (ids, labels), tuple(forks) if len(forks) > 1 else ()


def _unlearned(talk: Talk) -> int:
    """Return how many ids may be shared: the one before what is learned is not."""
    learned = (at for at, label in enumerate(talk[1]) if label != IGNORED)
    return max(0, next(learned, len(talk[1])) - 1)


def numbered(rows: Sequence[Row], length: int) -> tuple[Tensor, Tensor]:
    """Return which conversation each position is of, and its place in that.

    Args:
        rows: Of a batch.
        length: T, of the longest.

    Returns:
        [b, T] int64, 0 for what is shared or padded and 1, 2, … for own parts; and
        position ids, [b, T] int64.
    """
    number = torch.zeros(len(rows), length, dtype=torch.int64)
    place = torch.arange(length).repeat(len(rows), 1)
    for i, row in enumerate(rows):
        parts = itertools.pairwise((*row.forks, len(row.ids)))
        for n, (start, end) in enumerate(parts, start=1):
            number[i, start:end] = n
            place[i, start:end] -= start - row.forks[0]
    return number, place


def looking_back(number: Tensor, real: Tensor) -> Tensor:
    """Return which position may look at which.

    Args:
        number: See `numbered`.
        real: [b, T], 0 where a row is padded.

    Returns:
        [b, T, T] bool, queries × keys.
    """
    keys = number[:, None]
    back = torch.ones(keys.shape[-1], keys.shape[-1], device=keys.device).tril().bool()
    return back & real.bool()[:, None] & ((keys == 0) | (keys == number[..., None]))
