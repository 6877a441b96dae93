"""How often each entry was used: the measure of a codebook's health."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from . import _checks


def code_histogram(indices: Tensor, num_codes: int) -> Tensor:
    """Return how often each entry occurs.

    Args:
        indices: Any shape, int64 or int32. What lies outside [0, num_codes), −1
            included, is not counted.
        num_codes: K, the number of entries, at least 1.

    Returns:
        [num_codes] int64. Not differentiable.

    Raises:
        TypeError: `indices` is no integer tensor.
        ValueError: `num_codes` is below 1.
    """
    _checks.indices("code_histogram", indices)
    if num_codes < 1:
        raise ValueError(
            f"code_histogram: num_codes must be at least 1, got {num_codes}"
        )
    return _code_histogram(indices.reshape(-1).long(), num_codes)


def reference(indices: Tensor, num_codes: int) -> Tensor:
    """`code_histogram` in plain torch."""
    inside = (indices >= 0) & (indices < num_codes)
    return torch.bincount(indices[inside], minlength=num_codes)


def _fallback(indices: Tensor, num_codes: int) -> Tensor:
    # Without a data-dependent shape: what is outside is counted in one bin too many.
    inside = (indices >= 0) & (indices < num_codes)
    bins = torch.where(inside, indices, num_codes)
    counts = torch.zeros(num_codes + 1, dtype=torch.int64, device=indices.device)
    return counts.scatter_add_(0, bins, torch.ones_like(bins))[:num_codes].clone()


def _fake(indices: Tensor, num_codes: int) -> Tensor:
    return indices.new_empty((num_codes,), dtype=torch.int64)


_code_histogram = _library.define(
    "code_histogram(Tensor indices, SymInt num_codes) -> Tensor",
    fallback=_fallback,
    fake=_fake,
)
