"""Attention in float32 where the rest is bfloat16, which is how CPUs are quickest.

Torch's fused attention for CPUs gains nothing from bfloat16 and its gradient loses: at
64 positions it takes five times as long as in float32, at 240 half as long again, while
the matrix products around it gain.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@contextmanager
def float32_attention() -> Iterator[None]:
    """Compute attention in float32 in this block, autocast or not.

    The block must hold the gradient too, which may make the values anew. It is the
    function that is exchanged: torch's modes for functions do not last into backward.
    """
    plain = F.scaled_dot_product_attention

    def attend(*args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return plain(
                *(_wide(a) for a in args), **{k: _wide(v) for k, v in kwargs.items()}
            )

    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def _wide(value: Any) -> Any:
    """Return a tensor of numbers as float32, all else as it is."""
    number = isinstance(value, Tensor) and value.is_floating_point()
    return value.float() if number else value
