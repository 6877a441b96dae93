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

PAIRS_AT_ONCE = 1 << 22


@torch.no_grad()
def distinct(book: Tensor, counts: Tensor, within: float) -> float:
    """Return the effective number of different rows of a book.

    K² distances in float64, a bounded number at a time: for a look now and then.

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
    squares = rows.square().sum(dim=1)
    entropy = 0.0
    step = max(1, PAIRS_AT_ONCE // len(rows))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        apart = squares[part, None] + squares - 2 * rows[part] @ rows.T
        rounding = 1e-12 * squares.max()  # a row is near itself
        share = (apart <= within**2 + rounding).double() @ p
        entropy -= float(p[part] @ share.log())
    return math.exp(entropy)
