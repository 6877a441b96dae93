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


@torch.compiler.assume_constant_result
def _has_autocast(kind: str) -> bool:
    """Return whether autocast knows this kind of device; the meta device it does not.

    torch 2.11 cannot trace the question, so a compiled graph takes the answer.
    """
    return torch.amp.is_autocast_available(kind)


def autocast(x: Given) -> Given:
    """Cast to the autocast dtype as a convolution does; float64 stays."""
    if x is None or x.dtype == torch.float64:
        return x
    kind = x.device.type
    if not _has_autocast(kind) or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Inside, products on the device of `x` keep their dtype."""
    if not _has_autocast(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
