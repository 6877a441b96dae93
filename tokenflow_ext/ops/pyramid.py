"""Residual quantization, coarse to fine, and the way back.

At each scale: pool the residual to its grid, snap every cell to its nearest shared
entry, enlarge the entries to the full grid, add them to the sum, subtract them from the
residual. `indices` holds the scales end to end. The sum is all a decoder needs, and
`pyramid_lookup` makes it again from the indices, bit for bit.

Pooling and enlargement are defined to the last bit (_resample.py, docs/numerics.md).
Source: TokenFlow, arXiv:2412.03069, section 3; bicubic with a = −0.75.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _library
from . import _checks, _layout, _scales
from . import lookup as _lookup
from . import quantize as _quantize
from ._numerics import readable
from ._resample import area_pool, enlarge, sources, weights
from .prepare import Prepared, prepare


def pyramid_quantize(
    features: Tensor,
    semantic_book: Tensor,
    pixel_book: Tensor,
    scales: Sequence[int | Sequence[int]],
    *,
    pixel_weight: float = 1.0,
    normalize: bool = True,
    prepared: Prepared | None = None,
    check: bool = False,
) -> tuple[Tensor, Tensor]:
    """Quantize feature maps coarse to fine; return the indices and the sum.

    Args:
        features: [B, Ds + Dp, h, w], semantic channels first; float32, bfloat16 or
            float16, read as float32; float64 is never rounded (by the reference).
        semantic_book: [K, Ds], any of these dtypes, same device.
        pixel_book: [K, Dp].
        scales: Side lengths or (height, width) pairs, coarse to fine; a scale may be
            larger than the grid.
        pixel_weight: Weight of the pixel distance, at least 0, rounded to float32.
        normalize: Compare directions instead of vectors, and look up unit rows.
        prepared: `prepare(semantic_book, pixel_book)`, to save doing it here.
        check: Raise where a pooled cell is not finite. Synchronises; for eager code.

    Returns:
        indices: [B, L] int64 in [0, K), scales end to end, row-major in each; −1 for a
            cell that is not finite: it adds zeros, and the later scales go on.
        quantized: [B, Ds + Dp, h, w] float32 (float64 where a book is), the sum of the
            enlarged entries.
        Neither is differentiable; nn.PyramidQuantizer is the training path.

    Raises:
        TypeError: A dtype is unsupported.
        ValueError: Shapes, devices, scales or `prepared` disagree, the weight is
            negative; with `check`, the number of cells that are not finite.
    """
    op = "pyramid_quantize"
    _checks.floating(op, features=features)
    _checks.books(op, semantic_book, pixel_book)
    width = semantic_book.shape[1] + pixel_book.shape[1]
    if features.dim() != 4 or features.shape[1] != width or 0 in features.shape[2:]:
        raise ValueError(
            f"{op}: features must be [B, {width}, h, w] with h and w at least 1, as "
            f"wide as both books, got {list(features.shape)}"
        )
    _checks.same_device(
        op, features=features, semantic_book=semantic_book, pixel_book=pixel_book
    )
    _checks.weight(op, "pixel_weight", pixel_weight)
    pairs = _scales.as_pairs(op, scales)
    if torch.float64 in (features.dtype, semantic_book.dtype, pixel_book.dtype):
        with torch.no_grad():
            indices, quantized = reference_quantize(
                features,
                semantic_book,
                pixel_book,
                pairs,
                pixel_weight=pixel_weight,
                normalize=normalize,
            )
    else:
        if prepared is None:
            prepared = prepare(semantic_book, pixel_book, normalize=normalize)
        else:
            _quantize.check_prepared(
                op, prepared, semantic_book, pixel_book, normalize=normalize
            )
        features = features.detach()
        indices, quantized = _pyramid_quantize(
            features,
            prepared.rows,
            prepared.squares,
            prepared.limits,
            prepared.packed,
            *weights(features, pairs, features.shape[2], features.shape[3]),
            _scales.flat(pairs),
            prepared.semantic_width,
            float(pixel_weight),
            normalize,
        )
    if check:
        bad = int((indices < 0).sum())
        if bad:
            raise ValueError(
                f"{op}: features must be finite, got {bad} of {indices.numel()} pooled "
                "cells with NaN or Inf (or no finite entry in the book)"
            )
    return indices, quantized


def pyramid_lookup(
    indices: Tensor,
    semantic_book: Tensor,
    pixel_book: Tensor,
    scales: Sequence[int | Sequence[int]],
    *,
    size: int | Sequence[int] | None = None,
    normalize: bool = True,
) -> Tensor:
    """Return the sum of the enlarged entries: `quantized` of `pyramid_quantize`.

    Args:
        indices: [B, L] int64 or int32, scales end to end; the leading scales alone are
            allowed. An index outside [0, K) adds zeros and has no gradient.
        semantic_book: [K, Ds], float32, bfloat16 or float16 (read as float32) or
            float64 (never rounded), same device.
        pixel_book: [K, Dp].
        scales: Side lengths or (height, width) pairs, coarse to fine.
        size: The grid of the result, a side or a (height, width) pair; by default the
            last of `scales`.
        normalize: Scale every row of either half to unit length.

    Returns:
        [B, Ds + Dp, h, w] float32; float64 where a book is. Differentiable in the
        books.

    Raises:
        TypeError: A dtype is unsupported.
        ValueError: Shapes, devices, scales or size disagree, or `indices` ends inside
            a scale.
    """
    op = "pyramid_lookup"
    _checks.indices(op, indices)
    _checks.books(op, semantic_book, pixel_book)
    _checks.same_device(
        op, indices=indices, semantic_book=semantic_book, pixel_book=pixel_book
    )
    if indices.dim() != 2:
        raise ValueError(f"{op}: indices must be [B, L], got {list(indices.shape)}")
    pairs = _scales.as_pairs(op, scales)
    height, width = pairs[-1] if size is None else _grid(op, size)
    pairs = _scales.prefix(op, pairs, indices.shape[1])
    if torch.float64 in (semantic_book.dtype, pixel_book.dtype):
        return reference_lookup(
            indices,
            semantic_book,
            pixel_book,
            pairs,
            size=(height, width),
            normalize=normalize,
        )
    return _library.call(
        _pyramid_lookup,
        indices.long(),
        semantic_book,
        pixel_book,
        *weights(indices, pairs, height, width),
        _scales.flat(pairs),
        normalize,
    )


def _grid(op: str, size: int | Sequence[int]) -> tuple[int, int]:
    return _scales.as_pairs(op, [size], "size")[0]


def reference_quantize(
    features: Tensor,
    semantic_book: Tensor,
    pixel_book: Tensor,
    scales: Sequence[int | Sequence[int]],
    *,
    pixel_weight: float = 1.0,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:
    """`pyramid_quantize` as docs/numerics.md defines it."""
    pairs = _scales.as_pairs("pyramid_quantize", scales)
    semantic_width = semantic_book.shape[1]

    def search(rows: Tensor) -> Tensor:
        return _quantize.reference(
            rows[:, :semantic_width],
            rows[:, semantic_width:],
            semantic_book,
            pixel_book,
            pixel_weight=pixel_weight,
            normalize=normalize,
        )

    def read(indices: Tensor) -> Tensor:
        return _lookup.reference(
            indices, semantic_book, pixel_book, normalize=normalize
        )

    tables = weights(features, pairs, features.shape[2], features.shape[3])
    return _residual_loop(features, pairs, *tables, search, read)


def reference_lookup(
    indices: Tensor,
    semantic_book: Tensor,
    pixel_book: Tensor,
    scales: Sequence[int | Sequence[int]],
    *,
    size: int | Sequence[int] | None = None,
    normalize: bool = True,
) -> Tensor:
    """`pyramid_lookup` as docs/numerics.md defines it."""
    pairs = _scales.as_pairs("pyramid_lookup", scales)
    height, width = pairs[-1] if size is None else _grid("pyramid_lookup", size)
    pairs = _scales.prefix("pyramid_lookup", pairs, indices.shape[1])
    rows = _lookup.reference(indices, semantic_book, pixel_book, normalize=normalize)
    return _sum_of_scales(rows, pairs, *weights(rows, pairs, height, width))


# --- the loop, and what stands where no kernel does ---


def _residual_loop(
    features: Tensor,
    pairs: _scales.Pairs,
    row_weights: Tensor,
    column_weights: Tensor,
    search: Any,
    read: Any,
) -> tuple[Tensor, Tensor]:
    residual = readable(features)
    batch, channels = residual.shape[:2]
    total: Tensor | None = None
    indices = []
    for scale, (height, width) in enumerate(pairs):
        pooled = area_pool(residual, height, width)
        found = search(pooled.movedim(1, -1).reshape(-1, channels))
        indices.append(found.reshape(batch, height * width))
        entries = read(found).reshape(batch, height, width, channels).movedim(-1, 1)
        large = enlarge(entries, row_weights[scale], column_weights[scale])
        total = large if total is None else total + large
        residual = residual - large
    assert total is not None  # as_pairs refuses an empty schedule
    return torch.cat(indices, dim=1), total.contiguous()


def _sum_of_scales(
    rows: Tensor,
    pairs: _scales.Pairs,
    row_weights: Tensor,
    column_weights: Tensor,
) -> Tensor:
    """[B, L, D] entries of all scales -> [B, D, h, w]."""
    total: Tensor | None = None
    parts = rows.split([height * width for height, width in pairs], dim=1)
    for scale, ((height, width), part) in enumerate(zip(pairs, parts, strict=True)):
        entries = part.unflatten(1, (height, width)).movedim(-1, 1)
        large = enlarge(entries, row_weights[scale], column_weights[scale])
        total = large if total is None else total + large
    assert total is not None
    return total.contiguous()


@_library.float64_on_cpu
def _quantize_fallback(
    features: Tensor,
    rows: Tensor,
    squares: Tensor,
    limits: Tensor,
    packed: Tensor,
    row_weights: Tensor,
    column_weights: Tensor,
    scales: list[int],
    semantic_width: int,
    pixel_weight: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    def search(cells: Tensor) -> Tensor:
        return _quantize._quantize(
            cells[:, :semantic_width],
            cells[:, semantic_width:],
            rows,
            squares,
            limits,
            packed,
            pixel_weight,
            normalize,
        )

    def read(indices: Tensor) -> Tensor:
        return torch.where(indices[:, None] >= 0, rows[indices.clamp(min=0)], 0.0)

    return _residual_loop(
        features, _scales.paired(scales), row_weights, column_weights, search, read
    )


def _quantize_fake(
    features: Tensor,
    rows: Tensor,
    squares: Tensor,
    limits: Tensor,
    packed: Tensor,
    row_weights: Tensor,
    column_weights: Tensor,
    scales: list[int],
    semantic_width: int,
    pixel_weight: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    length = _scales.tokens(_scales.paired(scales))
    return (
        features.new_empty((features.shape[0], length), dtype=torch.int64),
        features.new_empty(features.shape, dtype=torch.float32),
    )


_pyramid_quantize = _library.define(
    "pyramid_quantize(Tensor features, Tensor rows, Tensor squares, Tensor limits,"
    " Tensor packed, Tensor row_weights, Tensor column_weights, SymInt[] scales,"
    " SymInt semantic_width, float pixel_weight, bool normalize) -> (Tensor, Tensor)",
    fallback=_quantize_fallback,
    fake=_quantize_fake,
)


@_library.float64_on_cpu
def _lookup_fallback(
    indices: Tensor,
    semantic_book: Tensor,
    pixel_book: Tensor,
    row_weights: Tensor,
    column_weights: Tensor,
    scales: list[int],
    normalize: bool,
) -> Tensor:
    rows = _lookup.reference(indices, semantic_book, pixel_book, normalize=normalize)
    return _sum_of_scales(rows, _scales.paired(scales), row_weights, column_weights)


def _lookup_fake(
    indices: Tensor,
    semantic_book: Tensor,
    pixel_book: Tensor,
    row_weights: Tensor,
    column_weights: Tensor,
    scales: list[int],
    normalize: bool,
) -> Tensor:
    shape = (
        indices.shape[0],
        semantic_book.shape[1] + pixel_book.shape[1],
        row_weights.shape[1],
        column_weights.shape[1],
    )
    return semantic_book.new_empty(shape, dtype=torch.float32)


_pyramid_lookup = _library.define(
    "pyramid_lookup(Tensor indices, Tensor semantic_book, Tensor pixel_book,"
    " Tensor row_weights, Tensor column_weights, SymInt[] scales, bool normalize)"
    " -> Tensor",
    fallback=_lookup_fallback,
    fake=_lookup_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scales, ctx.normalize = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    indices, semantic_book, pixel_book, row_weights, column_weights = ctx.saved_tensors
    parts = []
    for scale, (height, width) in enumerate(_scales.paired(ctx.scales)):
        rows = _matrix(height, row_weights[scale])
        columns = _matrix(width, column_weights[scale])
        with _layout.no_autocast(grad):
            part = rows.T @ grad @ columns  # [B, D, n_h, n_w]
        parts.append(part.flatten(2).transpose(1, 2))
    grad = torch.cat(parts, dim=1)
    semantic, pixel = _lookup.grad_of_books(
        grad.reshape(-1, grad.shape[-1]),
        indices.reshape(-1),
        semantic_book,
        pixel_book,
        ctx.normalize,
    )
    return None, semantic, pixel, None, None, None, None


def _matrix(cells: int, axis_weights: Tensor) -> Tensor:
    """The enlargement of one axis as a matrix: [out, cells] float32."""
    zeros = axis_weights.new_zeros(axis_weights.shape[0], cells)
    return zeros.scatter_add(1, sources(cells, axis_weights), axis_weights).float()


_library.autograd(_pyramid_lookup, _backward, _setup_context)
