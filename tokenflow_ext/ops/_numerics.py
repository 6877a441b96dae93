"""The contract's arithmetic in plain torch: what csrc/common/numerics.h says in C++.

Sums are written out one feature after another, in float64, because the order is part
of the definition. float64 inputs stay float64 and are never rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor


def readable(x: Tensor) -> Tensor:
    """Read bfloat16, float16 and float32 as float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def sum_of_squares(x: Tensor) -> Tensor:
    """Σ x_d² over the last dimension, in order. [..., D] -> [...] float64."""
    total = x.new_zeros(x.shape[:-1], dtype=torch.float64)
    for column in x.unbind(-1):
        value = column.double()
        total = total + value * value
    return total


def normalize_rows(x: Tensor) -> Tensor:
    """x / max(‖x‖, 1e-12), worked in float64, returned in the dtype of `x`."""
    squares = sum_of_squares(x)
    # Short rows have a constant divisor; the root of 0 must not enter their gradient.
    short = squares.detach().sqrt() < 1e-12
    norm = torch.where(short, 1.0, squares).sqrt()
    norm = torch.where(short, 1e-12, norm)
    return (x.double() / norm.unsqueeze(-1)).to(x.dtype)


def exact_dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a_d·b_d in float64, in order; `a` and `b` broadcast. [..., D] -> [...]."""
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for column_a, column_b in zip(a.unbind(-1), b.unbind(-1), strict=True):
        total = total + column_a.double() * column_b.double()
    return total


def query_rows(
    semantic: Tensor, pixel: Tensor | None, pixel_weight: float, normalize: bool
) -> Tensor:
    """The row that is scored: [semantic, w · pixel], read and normalised."""
    semantic = readable(semantic)
    semantic = normalize_rows(semantic) if normalize else semantic
    if pixel is None:
        return semantic
    pixel = readable(pixel)
    pixel = normalize_rows(pixel) if normalize else pixel
    return torch.cat([semantic, weight_as(pixel, pixel_weight) * pixel], dim=-1)


def weight_as(x: Tensor, pixel_weight: float) -> Tensor:
    """The pixel weight, rounded to the dtype of `x`."""
    return torch.tensor(pixel_weight, dtype=x.dtype, device=x.device)
