"""How many different entries are effectively in use, near ones taken for one.

Perplexity counts entries by name: two equal rows with two names are two. Here the share
of an entry is that of all rows near it. Nothing is merged, so no order and no chain of
neighbours matters; where all rows are far apart, this is the perplexity.
Source: diversity with similarities, of order 1, Leinster and Cobbold 2012,
doi:10.1890/10-2402.1; similarity is 1 within a distance and 0 beyond.
"""

import math

import torch
from torch import Tensor

LOOKED_AT = 4096  # rows whose neighbours are counted, at most
PAIRS_AT_ONCE = 1 << 22


@torch.no_grad()
def distinct(book: Tensor, counts: Tensor, within: float) -> float:
    """Return the effective number of different rows of a book.

    For a look now and then. Distances are float64; of more than 4096 rows used, as
    many are looked at, drawn evenly by how often they were used.

    Args:
        book: [K, D] floating.
        counts: [K], how often each row was used, at least 0.
        within: Distance up to which two rows are one.

    Returns:
        From 1 to the number of rows used; 0 where none was.
    """
    used = counts > 0
    if not used.any():
        return 0.0
    rows, p = book[used].double(), counts[used].double()
    p = p / p.sum()
    at, weights = torch.arange(len(rows), device=rows.device), p
    if len(rows) > LOOKED_AT:
        marks = (torch.arange(LOOKED_AT, device=rows.device) + 0.5) / LOOKED_AT
        at = torch.searchsorted(p.cumsum(0), marks.double()).clamp_max(len(rows) - 1)
        weights = torch.full_like(marks, 1 / LOOKED_AT, dtype=torch.float64)
    squares = rows.square().sum(dim=1)
    limit = within**2 + 1e-12 * squares.max()  # a row is near itself when rounded, too
    entropy = 0.0
    step = max(1, PAIRS_AT_ONCE // len(rows))
    for part, weight in zip(at.split(step), weights.split(step), strict=True):
        apart = squares[part, None] + squares - 2 * rows[part] @ rows.T
        share = (apart <= limit).double() @ p
        entropy -= float(weight @ share.log())
    return math.exp(entropy)
