"""Indices back to vectors: both halves of the shared entry, side by side.

Rows are scaled to unit length at every use, as the search compares them, so a looked-up
row is bit for bit the row that won. The gradient flows into both books through that
scaling: dx = (g − y·(y·g)) / ‖x‖ for y = x / ‖x‖, once per entry used.
Source: TokenFlow, arXiv:2412.03069, shared mapping.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from . import _checks
from ._numerics import exact_dot, readable, sum_of_squares
from .prepare import entry_rows


def lookup(
    indices: Tensor,
    semantic_book: Tensor,
    pixel_book: Tensor,
    *,
    normalize: bool = True,
    check: bool = False,
) -> Tensor:
    """Return the entries that `indices` name, semantic half first.

    Args:
        indices: Any shape [...], int64 or int32. Outside [0, K), −1 included, the row
            is zero and has no gradient.
        semantic_book: [K, Ds], float32, bfloat16 or float16 (read as float32) or
            float64 (never rounded), same device.
        pixel_book: [K, Dp].
        normalize: Scale every row of either half to unit length, as `quantize` does.
        check: Raise where an index is outside. Synchronises; for eager code.

    Returns:
        [..., Ds + Dp] float32; float64 where a book is. Differentiable in the books:
        the gradient has the dtype of the book; the order of its additions is fixed on
        the CPU, and not on CUDA, where it is summed in float64 by atomic additions.
        Once only: a gradient of that gradient needs float64 books.

    Raises:
        TypeError: A dtype is unsupported.
        ValueError: Shapes or devices disagree, or K is 0.
        IndexError: With `check`, an index is outside [0, K).
    """
    _checks.indices("lookup", indices)
    _checks.books("lookup", semantic_book, pixel_book)
    _checks.same_device(
        "lookup", indices=indices, semantic_book=semantic_book, pixel_book=pixel_book
    )
    if check:
        check_range("lookup", indices, semantic_book.shape[0])
    if torch.float64 in (semantic_book.dtype, pixel_book.dtype):
        return reference(indices, semantic_book, pixel_book, normalize=normalize)
    flat = indices if indices.dim() == 1 else indices.reshape(-1)
    rows = _library.call(_lookup, flat.long(), semantic_book, pixel_book, normalize)
    return rows if flat is indices else rows.reshape(*indices.shape, rows.shape[-1])


def check_range(op: str, indices: Tensor, num_codes: int) -> None:
    """Every index must be in [0, K). Synchronises."""
    if indices.numel() == 0:
        return
    low, high = (int(x) for x in indices.aminmax())
    if low < 0 or high >= num_codes:
        raise IndexError(
            f"{op}: indices must be in [0, {num_codes}), got [{low}, {high}]"
        )


def reference(
    indices: Tensor,
    semantic_book: Tensor,
    pixel_book: Tensor,
    *,
    normalize: bool = True,
) -> Tensor:
    """`lookup` as docs/numerics.md defines it."""
    inside = (indices >= 0) & (indices < semantic_book.shape[0])
    safe = torch.where(inside, indices, 0)
    halves = [entry_rows(book[safe], normalize) for book in (semantic_book, pixel_book)]
    return torch.where(inside.unsqueeze(-1), torch.cat(halves, dim=-1), 0.0)


@_library.float64_on_cpu
def _fallback(
    indices: Tensor, semantic_book: Tensor, pixel_book: Tensor, normalize: bool
) -> Tensor:
    return reference(indices, semantic_book, pixel_book, normalize=normalize)


def _fake(
    indices: Tensor, semantic_book: Tensor, pixel_book: Tensor, normalize: bool
) -> Tensor:
    width = semantic_book.shape[1] + pixel_book.shape[1]
    return semantic_book.new_empty((indices.shape[0], width), dtype=torch.float32)


_lookup = _library.define(
    "lookup(Tensor indices, Tensor semantic_book, Tensor pixel_book, bool normalize)"
    " -> Tensor",
    fallback=_fallback,
    fake=_fake,
)


@_library.float64_on_cpu
def _backward_fallback(
    grad: Tensor,
    indices: Tensor,
    semantic_book: Tensor,
    pixel_book: Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    entries, width = semantic_book.shape[0], grad.shape[1]
    inside = (indices >= 0) & (indices < entries)
    bins = torch.where(inside, indices, entries)  # one row too many, for the others
    total = torch.zeros(entries + 1, width, dtype=torch.float64, device=grad.device)
    total = total.index_add_(0, bins, grad.double())[:entries]
    used = torch.zeros(entries + 1, dtype=torch.bool, device=grad.device)
    used = used.index_fill_(0, bins, True)[:entries]
    semantic, pixel = total.split([semantic_book.shape[1], pixel_book.shape[1]], dim=1)
    return (
        _through_scaling(semantic, semantic_book, used, normalize),
        _through_scaling(pixel, pixel_book, used, normalize),
    )


def _through_scaling(
    grad: Tensor, book: Tensor, used: Tensor, normalize: bool
) -> Tensor:
    if normalize:
        x = readable(book)
        norm = sum_of_squares(x).sqrt()[:, None]
        along = torch.where(
            norm > 1e-12, exact_dot(x, grad)[:, None] / (norm * norm), 0
        )
        grad = (grad - x.double() * along) / norm.clamp_min(1e-12)
    return torch.where(used[:, None], grad, 0.0).float()


def _backward_fake(
    grad: Tensor,
    indices: Tensor,
    semantic_book: Tensor,
    pixel_book: Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    return (
        semantic_book.new_empty(semantic_book.shape, dtype=torch.float32),
        pixel_book.new_empty(pixel_book.shape, dtype=torch.float32),
    )


_lookup_backward = _library.define(
    "lookup_backward(Tensor grad, Tensor indices, Tensor semantic_book,"
    " Tensor pixel_book, bool normalize) -> (Tensor, Tensor)",
    fallback=_backward_fallback,
    fake=_backward_fake,
)


_library.no_second_gradient(_lookup_backward, "lookup", "float64 books")


def grad_of_books(
    grad: Tensor,
    indices: Tensor,
    semantic_book: Tensor,
    pixel_book: Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of both books, in their dtypes, from that of the looked-up rows.

    `grad` is [N, Ds + Dp], `indices` is [N] int64.
    """
    semantic, pixel = _library.call(
        _lookup_backward, grad, indices, semantic_book, pixel_book, normalize
    )
    return semantic.to(semantic_book.dtype), pixel.to(pixel_book.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indices, semantic_book, pixel_book, ctx.normalize = inputs
    ctx.save_for_backward(indices, semantic_book, pixel_book)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    indices, semantic_book, pixel_book = ctx.saved_tensors
    semantic, pixel = grad_of_books(
        grad, indices, semantic_book, pixel_book, ctx.normalize
    )
    return None, semantic, pixel, None


_library.autograd(_lookup, _backward, _setup_context)
