"""Seeded cases for tests and benchmarks: books, features and indices by family.

Values are drawn on the CPU and moved, so that a case is the same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

BOOK_FAMILIES = ("random", "duplicates", "collapsed", "zeros", "clustered")


def make_books(
    k: int,
    ds: int,
    dp: int,
    seed: int,
    family: str = "random",
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return a semantic book [k, ds] and a pixel book [k, dp], float32.

    Args:
        k: Number of entries.
        ds: Width of the semantic half.
        dp: Width of the pixel half.
        seed: The same seed gives the same books.
        family: `random` is Gaussian; `duplicates` repeats an eighth of the entries
            until the book is full (exact ties); `collapsed` puts all entries within
            1e-7 of one (no sweep can tell them apart); `zeros` has every third entry
            zero; `clustered` is what training tends to: groups with small spread.
        device: Where the books go.
    """
    draw = torch.Generator().manual_seed(seed)
    book = torch.randn(k, ds + dp, generator=draw)
    if family == "duplicates":
        book = book[torch.arange(k) % max(1, k // 8)]
    elif family == "collapsed":
        book = book[:1] + 1e-7 * book
    elif family == "zeros":
        book[::3] = 0.0
    elif family == "clustered":
        centre = torch.randint(max(1, k // 16), (k,), generator=draw)
        book = book[centre] + 0.05 * book
    elif family != "random":
        raise ValueError(
            f"make_books: family must be one of {BOOK_FAMILIES}, got {family!r}"
        )
    semantic, pixel = book.to(device).split([ds, dp], dim=1)
    return semantic.contiguous(), pixel.contiguous()


def make_vectors(
    n: int,
    books: tuple[Tensor, Tensor],
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Return [n, Ds] and [n, Dp] to be quantized with `books`.

    A third is Gaussian, a third are entries themselves, a third halfway between two
    entries, where the winner hangs on the last bits.
    """
    draw = torch.Generator().manual_seed(seed)
    entries = torch.cat([book.float().cpu() for book in books], dim=1)
    near, other = entries[torch.randint(len(entries), (2, n), generator=draw)]
    kind = (torch.arange(n) % 3)[:, None]
    vectors = torch.randn(n, entries.shape[1], generator=draw)
    vectors = torch.where(kind == 1, near, vectors)
    vectors = torch.where(kind == 2, 0.5 * (near + other), vectors)
    vectors = vectors.to(books[0].device, dtype)
    semantic, pixel = vectors.split([book.shape[1] for book in books], dim=1)
    return semantic.contiguous(), pixel.contiguous()


def make_features(
    batch: int,
    channels: int,
    height: int,
    width: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return [batch, channels, height, width]: a smooth part and detail, Gaussian."""
    draw = torch.Generator().manual_seed(seed)
    detail = torch.randn(batch, channels, height, width, generator=draw)
    smooth = torch.randn(batch, channels, 1, 1, generator=draw)
    return (smooth + detail).to(device, dtype)


def make_indices(
    shape: tuple[int, ...], k: int, seed: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Return indices in [−1, k]: both ends just outside, and some entries often."""
    draw = torch.Generator().manual_seed(seed)
    indices = torch.randint(-1, k + 1, shape, generator=draw)
    often = torch.rand(shape, generator=draw) < 0.25
    return torch.where(often, k // 2, indices).to(device)
