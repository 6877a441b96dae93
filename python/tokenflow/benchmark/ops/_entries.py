"""What reading entries has in common: the case and the judge."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import tokenflow_ext as tfx
from tokenflow.benchmark.method import Values
from tokenflow_ext.testing import make_books, make_indices


def make(values: Values, device: torch.device) -> Any:
    """Return books, as given and normalised, and indices in [0, K)."""
    n, k, ds, dp = (values[key] for key in ("n", "k", "ds", "dp"))
    books = make_books(k, ds, dp, 0, device=device)
    rows = tfx.prepare(*books).rows
    return SimpleNamespace(
        books=books,
        rows=rows,
        unit_books=tuple(half.contiguous() for half in rows.split([ds, dp], 1)),
        indices=make_indices((n,), k, 1, device).clamp(0, k - 1),
        part=lambda found: found,
    )


def worst_of(found: Any, right: Tensor) -> float:
    """Largest difference, relative to values of size one."""
    return float((found.double() - right).abs().nan_to_num(torch.inf).max())
