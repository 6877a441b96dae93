"""The nearest shared entry of each (semantic, pixel) pair.

Two codebooks, one numbering: an entry is a semantic row and a pixel row, and a pair is
given the entry whose weighted distances sum to the least. For rows of unit length that
is the largest dot product with [semantic, w · pixel], so one search of width Ds + Dp
serves both books. The score is defined to the last bit (docs/numerics.md); a cheap
sweep with a proven error bound only decides which entries the definition is asked
about.
Source: TokenFlow, arXiv:2412.03069, shared mapping.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from . import _checks
from ._numerics import exact_dot, query_rows, sum_of_squares, weight_as
from .prepare import Prepared, entry_rows, prepare


def quantize(
    semantic: Tensor,
    pixel: Tensor,
    semantic_book: Tensor,
    pixel_book: Tensor,
    *,
    pixel_weight: float = 1.0,
    normalize: bool = True,
    prepared: Prepared | None = None,
    check: bool = False,
) -> Tensor:
    """Return the nearest shared entry of each (semantic, pixel) pair.

    indices[n] = argmin_k |s_n − S_k|² + pixel_weight · |p_n − P_k|², all rows first
    scaled to unit length where `normalize` is set. Ties go to the smallest k, on every
    device. Source: arXiv:2412.03069, shared mapping.

    Args:
        semantic: [..., Ds], float32, bfloat16 or float16, read as float32; float64 is
            scored without rounding by the reference.
        pixel: [..., Dp], same leading shape and device.
        semantic_book: [K, Ds], any of these dtypes.
        pixel_book: [K, Dp].
        pixel_weight: Weight of the pixel distance, at least 0, rounded to float32.
        normalize: Compare directions instead of vectors.
        prepared: `prepare(semantic_book, pixel_book)`, to save doing it here.
        check: Raise where a row is not finite. Synchronises; for eager code.

    Returns:
        [...] int64 in [0, K); −1 for a row that is not finite (after weighting), or
        where no entry is. Not differentiable.

    Raises:
        TypeError: A dtype is unsupported.
        ValueError: Shapes, devices or `prepared` disagree, K is 0, the weight is
            negative; with `check`, the number of rows that are not finite.
    """
    _checks.floating("quantize", semantic=semantic, pixel=pixel)
    _checks.books("quantize", semantic_book, pixel_book)
    _checks.last_dim(
        "quantize", "semantic", semantic, semantic_book.shape[1], "semantic_book"
    )
    _checks.last_dim("quantize", "pixel", pixel, pixel_book.shape[1], "pixel_book")
    if pixel.shape[:-1] != semantic.shape[:-1]:
        raise ValueError(
            f"quantize: pixel must have the leading shape of semantic, "
            f"{list(semantic.shape[:-1])}, got {list(pixel.shape[:-1])}"
        )
    _checks.same_device(
        "quantize",
        semantic=semantic,
        pixel=pixel,
        semantic_book=semantic_book,
        pixel_book=pixel_book,
    )
    _checks.weight("quantize", "pixel_weight", pixel_weight)
    return search(
        "quantize",
        (semantic, pixel),
        (semantic_book, pixel_book),
        pixel_weight,
        normalize,
        prepared,
        check,
    )


def reference(
    semantic: Tensor,
    pixel: Tensor | None,
    semantic_book: Tensor,
    pixel_book: Tensor | None,
    *,
    pixel_weight: float = 1.0,
    normalize: bool = True,
) -> Tensor:
    """`quantize` as docs/numerics.md defines it: every score, in float64, in order."""
    query = query_rows(semantic, pixel, pixel_weight, normalize)
    shape, query = query.shape[:-1], query.reshape(-1, query.shape[-1])
    rows = entry_rows(semantic_book, normalize)
    offset = rows.new_zeros(len(rows), dtype=torch.float64)
    if not normalize:
        offset = sum_of_squares(rows)
    if pixel_book is not None:
        pixel_rows = entry_rows(pixel_book, normalize)
        if not normalize:
            weight = weight_as(pixel_rows, pixel_weight).double()
            offset = offset + weight * sum_of_squares(pixel_rows)
        rows = torch.cat([rows, pixel_rows], dim=1)
    offset = 0.5 * offset
    finite_entry = rows.isfinite().all(dim=1)
    finite_query = query.isfinite().all(dim=1)
    query = torch.where(finite_query[:, None], query, 0.0)
    rows = torch.where(finite_entry[:, None], rows, 0.0)
    offset = torch.where(finite_entry, offset, torch.inf)
    indices = torch.where(finite_query, _best(query, rows, offset), -1)
    if not finite_entry.any():
        indices = torch.full_like(indices, -1)
    return indices.reshape(shape)


def search(
    op: str,
    vectors: tuple[Tensor, Tensor | None],
    books: tuple[Tensor, Tensor | None],
    pixel_weight: float,
    normalize: bool,
    prepared: Prepared | None,
    check: bool,
) -> Tensor:
    """What `quantize` and `nearest` do once their arguments are checked."""
    given = [t for t in (*vectors, *books) if t is not None]
    if any(t.dtype == torch.float64 for t in given):
        indices = reference(
            *vectors, *books, pixel_weight=pixel_weight, normalize=normalize
        )
    else:
        if prepared is None:
            prepared = prepare(*books, normalize=normalize)
        else:
            check_prepared(op, prepared, *books, normalize=normalize)
        semantic, pixel = (
            None if t is None else t.detach().reshape(-1, t.shape[-1]) for t in vectors
        )
        indices = _quantize(
            semantic,
            pixel,
            prepared.rows,
            prepared.squares,
            prepared.limits,
            prepared.packed,
            float(pixel_weight),
            normalize,
        ).reshape(vectors[0].shape[:-1])
    if check:
        bad = int((indices < 0).sum())
        if bad:
            raise ValueError(
                f"{op}: vectors must be finite, got {bad} of {indices.numel()} rows "
                "with NaN or Inf (or no finite entry in the book)"
            )
    return indices


def check_prepared(
    op: str,
    prepared: Prepared,
    semantic_book: Tensor,
    pixel_book: Tensor | None,
    *,
    normalize: bool,
) -> None:
    """`prepared` must have been made from books like these."""
    if not isinstance(prepared, Prepared):
        raise TypeError(
            f"{op}: prepared must come from tokenflow_ext.prepare, "
            f"got {type(prepared).__name__}"
        )
    width = semantic_book.shape[1]
    pixel_width = 0 if pixel_book is None else pixel_book.shape[1]
    expected = (semantic_book.shape[0], width, pixel_width, normalize)
    came = (
        prepared.rows.shape[0],
        prepared.semantic_width,
        prepared.pixel_width,
        prepared.normalize,
    )
    if came != expected or prepared.rows.device != semantic_book.device:
        raise ValueError(
            f"{op}: prepared must fit the books: (K, Ds, Dp, normalize) = {expected} "
            f"on {semantic_book.device}, got {came} on {prepared.rows.device}"
        )


def _best(query: Tensor, rows: Tensor, offset: Tensor) -> Tensor:
    """First entry of the largest exact score, a bounded number of scores at a time."""
    indices = torch.empty(len(query), dtype=torch.int64, device=query.device)
    step = max(1, (1 << 20) // len(rows))
    for start in range(0, len(query), step):
        part = query[start : start + step]
        score = exact_dot(part[:, None, :], rows[None, :, :]) - offset
        indices[start : start + step] = score.argmax(dim=1)
    return indices


# A row with more surviving entries than this is scored whole: collapsed books must not
# make the list of survivors as large as N × K.
_MANY = 64


def _fallback(
    semantic: Tensor,
    pixel: Tensor | None,
    rows: Tensor,
    squares: Tensor,
    limits: Tensor,
    packed: Tensor,
    pixel_weight: float,
    normalize: bool,
) -> Tensor:
    """A float64 matmul in chunks, then the exact score of what may still win.

    Its additions have no fixed order, so it only rules out; the bound is that of a
    float32 sweep. No autocast and no precision setting rounds a float64 matmul.
    """
    if rows.device.type == "mps":  # no float64 there
        return _fallback(
            semantic.cpu(),
            None if pixel is None else pixel.cpu(),
            rows.cpu(),
            squares.cpu(),
            limits.cpu(),
            packed.cpu(),
            pixel_weight,
            normalize,
        ).to(rows.device)
    query = query_rows(semantic.float(), pixel, pixel_weight, normalize)
    weight = weight_as(rows, pixel_weight).double()
    offset = 0.5 * (squares[:, 0] + weight * squares[:, 1])
    largest_offset = 0.5 * (limits[1] + weight * limits[2])
    finite = query.isfinite().all(dim=1)
    query = torch.where(finite[:, None], query, 0.0)
    # csrc/common/numerics.h, sweep_error.
    magnitude = sum_of_squares(query).sqrt() * limits[0].sqrt() + largest_offset
    error = (rows.shape[1] + 8) * 1.01 * (magnitude * 2.0**-24 + 1.5e-45)
    error = torch.where(magnitude < 1e37, error, torch.nan)
    indices = torch.empty(len(query), dtype=torch.int64, device=query.device)
    step = max(1, (1 << 22) // len(rows))
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        indices[part] = _decide(query[part], rows, offset, error[part])
    nowhere = (offset == torch.inf).all()
    return torch.where(finite & ~nowhere, indices, -1)


def _decide(query: Tensor, rows: Tensor, offset: Tensor, error: Tensor) -> Tensor:
    sweep = query.double() @ rows.double().T - offset
    floor = sweep.amax(dim=1) - 2 * error
    alive = ~(sweep < floor[:, None])  # NaN rules nothing out
    many = alive.sum(dim=1) > _MANY
    best = torch.empty(len(query), dtype=torch.int64, device=query.device)
    best[many] = _best(query[many], rows, offset)
    n, k = (alive & ~many[:, None]).nonzero(as_tuple=True)
    score = exact_dot(query[n], rows[k]) - offset[k]
    top = torch.full((len(query),), -torch.inf, dtype=torch.float64, device=n.device)
    top = top.scatter_reduce(0, n, score, "amax")
    winner = torch.full_like(best, len(rows)).scatter_reduce(
        0, n, torch.where(score == top[n], k, len(rows)), "amin"
    )
    return torch.where(many, best, winner)


def _fake(
    semantic: Tensor,
    pixel: Tensor | None,
    rows: Tensor,
    squares: Tensor,
    limits: Tensor,
    packed: Tensor,
    pixel_weight: float,
    normalize: bool,
) -> Tensor:
    return semantic.new_empty((semantic.shape[0],), dtype=torch.int64)


_quantize = _library.define(
    "quantize(Tensor semantic, Tensor? pixel, Tensor rows, Tensor squares,"
    " Tensor limits, Tensor packed, float pixel_weight, bool normalize) -> Tensor",
    fallback=_fallback,
    fake=_fake,
)
