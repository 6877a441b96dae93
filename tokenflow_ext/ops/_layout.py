"""Memory formats and autocast, one rule for every op on maps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

Given = TypeVar("Given", Tensor, Tensor | None)


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


# Kinds of device that autocast knows; the meta device is none. Asked here once: torch
# 2.11 cannot trace the question.
_AUTOCAST = frozenset(
    kind
    for kind in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "xla")
    if torch.amp.is_autocast_available(kind)
)


def autocast(x: Given) -> Given:
    """Cast to the autocast dtype as a convolution does; float64 stays."""
    if x is None or x.dtype == torch.float64:
        return x
    kind = x.device.type
    if kind not in _AUTOCAST or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Inside, products on the device of `x` keep their dtype."""
    if x.device.type not in _AUTOCAST:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
