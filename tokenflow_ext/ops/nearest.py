"""The nearest entry of one codebook: the search of any VQ model.

The same definition, bounds and kernels as `quantize`, with one book.
"""

from __future__ import annotations

from torch import Tensor

from . import _checks
from . import quantize as _quantize
from .prepare import Prepared


def nearest(
    vectors: Tensor,
    book: Tensor,
    *,
    normalize: bool = False,
    prepared: Prepared | None = None,
    check: bool = False,
) -> Tensor:
    """Return the nearest entry of each vector.

    indices[n] = argmin_k |x_n − E_k|²; ties go to the smallest k, on every device.

    Args:
        vectors: [..., D], float32, bfloat16 or float16, read as float32; float64 is
            scored without rounding by the reference.
        book: [K, D], any of these dtypes, same device.
        normalize: Compare directions instead of vectors.
        prepared: `prepare(book, normalize=normalize)`, to save doing it here.
        check: Raise where a row is not finite. Synchronises; for eager code.

    Returns:
        [...] int64 in [0, K); −1 for a row that is not finite. Not differentiable.

    Raises:
        TypeError: A dtype is unsupported.
        ValueError: Shapes, devices or `prepared` disagree, or K is 0; with `check`,
            the number of rows that are not finite.
    """
    _checks.floating("nearest", vectors=vectors, book=book)
    _checks.book("nearest", "book", book)
    _checks.last_dim("nearest", "vectors", vectors, book.shape[1], "book")
    _checks.same_device("nearest", vectors=vectors, book=book)
    return _quantize.search(
        "nearest", (vectors, None), (book, None), 1.0, normalize, prepared, check
    )


def reference(vectors: Tensor, book: Tensor, *, normalize: bool = False) -> Tensor:
    """`nearest` as docs/numerics.md defines it."""
    return _quantize.reference(vectors, None, book, None, normalize=normalize)
