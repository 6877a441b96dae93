"""Books made ready to be searched, as an explicit handle.

Normalising 32,768 entries costs about as much as quantizing a few hundred vectors, so
whoever quantizes many times with the same books does it once. Nothing is remembered
behind the caller's back: a book that changes is prepared again by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _library
from . import _checks
from ._numerics import normalize_rows, readable, sum_of_squares


@dataclass(frozen=True)
class Prepared:
    """Books that `prepare` made ready; pass it as `prepared=`.

    Attributes:
        rows: [K, Ds + Dp] float32, the entries [semantic, pixel] as they are compared.
        squares: [K, 2] float64, squared norms of the halves where rows are not
            normalised, else 0; +inf marks an entry that is not finite.
        limits: [3] float64, a bound on the squared norm of a row, and the largest of
            `squares` in either half.
        semantic_width: Ds; with one book, all of the width.
        normalize: Whether the rows were scaled to unit length.
        packed: uint8, the rows once more as the sweep of their device reads them (on
            CPU a byte per element, on CUDA two); may be empty.
    """

    rows: Tensor
    squares: Tensor
    limits: Tensor
    semantic_width: int
    normalize: bool
    packed: Tensor

    @property
    def pixel_width(self) -> int:
        """Dp; 0 with one book."""
        return self.rows.shape[1] - self.semantic_width

    def to(self, device: torch.device | str) -> Prepared:
        """Return the same books on another device."""
        rows = self.rows.to(device)
        return Prepared(
            rows,
            self.squares.to(device),
            self.limits.to(device),
            self.semantic_width,
            self.normalize,
            _pack(rows, self.semantic_width),
        )


def prepare(
    semantic_book: Tensor, pixel_book: Tensor | None = None, *, normalize: bool = True
) -> Prepared:
    """Return the books ready for `quantize`, `nearest` and `pyramid_quantize`.

    Args:
        semantic_book: [K, Ds], float32, bfloat16 or float16 (read as float32).
        pixel_book: [K, Dp], same device; None for one book.
        normalize: Scale every row of either half to unit length.

    Returns:
        A handle of about K · (5 · (Ds + Dp) + 24) bytes. Not differentiable.

    Raises:
        TypeError: A book is not floating.
        ValueError: Shapes or devices disagree, or a book is empty.
    """
    if pixel_book is None:
        _checks.floating("prepare", semantic_book=semantic_book)
        _checks.book("prepare", "semantic_book", semantic_book)
    else:
        _checks.books("prepare", semantic_book, pixel_book)
        _checks.same_device(
            "prepare", semantic_book=semantic_book, pixel_book=pixel_book
        )
    pixel = None if pixel_book is None else pixel_book.detach()
    rows, squares, limits = _prepare(semantic_book.detach(), pixel, normalize)
    width = semantic_book.shape[1]
    packed = _pack(rows, width)
    return Prepared(rows, squares, limits, width, normalize, packed)


def entry_rows(book: Tensor, normalize: bool) -> Tensor:
    """Entries of one book as they are compared and looked up."""
    book = readable(book)
    return normalize_rows(book) if normalize else book


def _fallback(
    semantic_book: Tensor, pixel_book: Tensor | None, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    halves = [semantic_book] if pixel_book is None else [semantic_book, pixel_book]
    halves = [half.float() for half in halves]
    squares = torch.stack([sum_of_squares(half) for half in halves], dim=1)
    finite = squares.isfinite().all(dim=1)
    rows = torch.cat([entry_rows(half, normalize) for half in halves], dim=1)
    rows = torch.where(finite[:, None], rows, 0.0)
    kept = torch.zeros(len(finite), 2, dtype=torch.float64, device=rows.device)
    if not normalize:
        kept[:, : squares.shape[1]] = torch.where(finite[:, None], squares, 0.0)
    if normalize:  # rounding makes an element at most 2⁻²⁴ larger
        longest = kept.new_tensor(len(halves) * (1 + 2**-20))
    else:
        longest = sum_of_squares(rows).max()
    limits = torch.stack([longest, *kept.max(dim=0).values])
    kept[:, 0].masked_fill_(~finite, torch.inf)
    return rows, kept, limits


def _fake(
    semantic_book: Tensor, pixel_book: Tensor | None, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    entries, width = semantic_book.shape
    width = width + (0 if pixel_book is None else pixel_book.shape[1])
    new = semantic_book.new_empty
    return (
        new((entries, width), dtype=torch.float32),
        new((entries, 2), dtype=torch.float64),
        new((3,), dtype=torch.float64),
    )


_prepare = _library.define(
    "prepare(Tensor semantic_book, Tensor? pixel_book, bool normalize)"
    " -> (Tensor, Tensor, Tensor)",
    fallback=_fallback,
    fake=_fake,
)


def _packed_bytes(rows: Tensor) -> int:
    """What the pack of the rows' device writes (csrc/ops/quantize/prepare_cpu.cpp,
    quantize_cuda.cu)."""
    entries, width = rows.shape
    if rows.device.type == "cuda":
        slabs, chunks = (entries + 255) // 256, (width + 7) // 8
        return 256 + slabs * chunks * 4096 if width <= 128 and entries < 2**31 else 0
    if rows.device.type != "cpu" or width > 1024:
        return 0
    tiled = (entries + 11) // 12 * 12
    return 64 + tiled * 4 * (2 + (width + 3) // 4)


def _no_pack(rows: Tensor, semantic_width: int) -> Tensor:
    return rows.new_zeros(_packed_bytes(rows), dtype=torch.uint8)


def _fake_pack(rows: Tensor, semantic_width: int) -> Tensor:
    return rows.new_empty(_packed_bytes(rows), dtype=torch.uint8)


_pack = _library.define(
    "pack(Tensor rows, SymInt semantic_width) -> Tensor",
    fallback=_no_pack,
    fake=_fake_pack,
)
