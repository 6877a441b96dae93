"""Memory formats and autocast, one rule for every op on maps."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """The format a result takes: channels_last where x is, else contiguous.

    A map that is both, or neither, gives contiguous.
    """
    if (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    ):
        return torch.channels_last
    return torch.contiguous_format


def autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Cast to the autocast dtype as a convolution does; float64 stays."""
    first = next(t for t in tensors if t is not None)
    kind = first.device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    dtype = torch.get_autocast_dtype(kind)
    return [
        t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors
    ]
