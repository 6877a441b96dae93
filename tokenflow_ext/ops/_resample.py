"""Between the grids of the pyramid: area pooling and bicubic enlargement, to the bit.

Plain torch, differentiable, and the definition of both (docs/numerics.md): sums run in
float64 in row-major order. The bicubic weights are made here, once, for every device,
because a polynomial in floating point depends on what a compiler contracts: the
position is an exact fraction, its floor an integer, and the rest Python's own floats.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import _library
from . import _scales


def area_pool(x: Tensor, height: int, width: int) -> Tensor:
    """Mean of each cell's share of the grid, as adaptive pooling cuts it.

    Sums in float64 in row-major order, one true division, rounded to the dtype of `x`.
    [B, D, h, w] -> [B, D, height, width].
    """
    first_row, last_row, most_rows = _bins(x.shape[-2], height, x.device)
    first_column, last_column, most_columns = _bins(x.shape[-1], width, x.device)
    wide = x.double()
    total = wide.new_zeros(())
    for i in range(most_rows):
        row = first_row + i
        rows = wide[..., row.clamp(max=x.shape[-2] - 1), :]
        for j in range(most_columns):
            column = first_column + j
            inside = (row < last_row)[:, None] & (column < last_column)[None, :]
            value = rows[..., column.clamp(max=x.shape[-1] - 1)]
            total = total + torch.where(inside, value, 0.0)
    count = (last_row - first_row)[:, None] * (last_column - first_column)[None, :]
    return (total / count.double()).to(x.dtype)


def enlarge(x: Tensor, row_weights: Tensor, column_weights: Tensor) -> Tensor:
    """Bicubic resampling by size: sixteen exact products, summed in row-major order.

    Args:
        x: [B, D, n_h, n_w].
        row_weights: [h, 4] float64, from `weights`.
        column_weights: [w, 4] float64.

    Returns:
        [B, D, h, w] in the dtype of `x`.
    """
    rows = sources(x.shape[-2], row_weights)
    columns = sources(x.shape[-1], column_weights)
    wide = x.double()
    total = wide.new_zeros(())
    for i in range(4):
        line = wide[..., rows[:, i], :]
        for j in range(4):
            weight = (row_weights[:, i, None] * column_weights[None, :, j]).float()
            total = total + weight.double() * line[..., columns[:, j]]
    return total.to(x.dtype)


def weights(
    like: Tensor, pairs: _scales.Pairs, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Bicubic weights of every scale: [S, height, 4] and [S, width, 4] float64.

    The first call for a schedule and a device copies a small table there, which waits:
    call the op once before a CUDA graph records it.
    """
    return _pyramid_weights(like.detach(), _scales.flat(pairs), height, width)


def _bins(cells: int, bins: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """First cell, last cell (exclusive) of each bin, and the most cells of any."""
    bin_ = torch.arange(bins, device=device)
    first = bin_ * cells // bins
    last = ((bin_ + 1) * cells + bins - 1) // bins
    return first, last, cells // bins if cells % bins == 0 else cells // bins + 2


def sources(cells: int, axis_weights: Tensor) -> Tensor:
    """The four source cells of each cell of the large grid: [out, 4] int64."""
    out = axis_weights.shape[0]
    cell = torch.arange(out, device=axis_weights.device)
    position = torch.div((2 * cell + 1) * cells - out, 2 * out, rounding_mode="floor")
    tap = torch.arange(-1, 3, device=axis_weights.device)
    return (position[:, None] + tap).clamp(0, cells - 1)


@functools.lru_cache(maxsize=256)
def _axis_weights(cells: int, out: int) -> tuple[tuple[float, ...], ...]:
    """The four weights of each of `out` cells, in Python's floats (never contracted).

    The fraction is that of the exact position ((2o + 1)·cells − out) / (2·out).
    """

    def near(x: float) -> float:
        return ((1.25 * x - 2.25) * x) * x + 1.0

    def far(x: float) -> float:
        return ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0

    table = []
    for o in range(out):
        t = ((2 * o + 1) * cells - out) % (2 * out) / (2 * out)
        table.append((far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t)))
    return tuple(table)


@functools.lru_cache(maxsize=64)
def _tables(
    sides: tuple[int, ...], height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    def table(cells: tuple[int, ...], out: int) -> Tensor:
        values = [_axis_weights(n, out) for n in cells]
        return torch.tensor(values, dtype=torch.float64).to(device)

    return table(sides[::2], height), table(sides[1::2], width)


def _weights_fallback(
    like: Tensor, scales: list[int], height: int, width: int
) -> tuple[Tensor, Tensor]:
    device = torch.device("cpu") if like.device.type == "mps" else like.device
    rows, columns = _tables(tuple(scales), height, width, device)
    return rows.clone(), columns.clone()


def _weights_fake(
    like: Tensor, scales: list[int], height: int, width: int
) -> tuple[Tensor, Tensor]:
    count = len(scales) // 2
    return (
        like.new_empty((count, height, 4), dtype=torch.float64),
        like.new_empty((count, width, 4), dtype=torch.float64),
    )


_pyramid_weights = _library.define(
    "pyramid_weights(Tensor like, SymInt[] scales, SymInt height, SymInt width)"
    " -> (Tensor, Tensor)",
    fallback=_weights_fallback,
    fake=_weights_fake,
    has_kernels=False,  # a small table, made once per schedule and grid
)
