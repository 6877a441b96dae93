"""What both directions of the pyramid have in common: the case, and loops in torch."""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenflow_ext as tfx
from tokenflow.benchmark import families
from tokenflow.benchmark.method import Values
from tokenflow_ext.testing import make_features

SCHEDULES = {
    817: [1, 2, 4, 6, 8, 10, 12, 14, 16],
    2227: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27],
    204: [1, 2, 3, 4, 5, 6, 7, 8],  # mini
    5: [1, 2],
}


def make(values: Values, device: torch.device) -> Any:
    """Return features, books and the schedule; `mini` brings real ones."""
    batch, tokens = values["batch"], values["tokens"]
    scales, halves = SCHEDULES[tokens], [values["ds"], values["dp"]]
    side, family = scales[-1], values.get("family", "random")
    count = batch * side * side
    vectors, book = families.search(count, values["k"], *halves, family=family)
    if family == "random":
        features = make_features(batch, sum(halves), side, side, 1)
    else:
        features = vectors.unflatten(0, (batch, side, side)).permute(0, 3, 1, 2)
    books = tuple(b.contiguous().to(device) for b in book.split(halves, 1))
    return SimpleNamespace(
        features=features.contiguous().to(device),
        books=books,
        rows=tfx.prepare(*books).rows,
        widths=halves,
        scales=scales,
        weight=1.0,
    )


def pooled(rest: Tensor, side: int, widths: list[int]) -> Tensor:
    """Cells of a scale as rows [B · side², Ds + Dp] with halves of unit length."""
    cells = F.interpolate(rest, size=(side, side), mode="area").permute(0, 2, 3, 1)
    halves = cells.flatten(0, 2).split(widths, 1)
    return torch.cat([F.normalize(half, dim=-1) for half in halves], 1)


def enlarged(rows: Tensor, indices: Tensor, side: int, size: Any) -> Tensor:
    """Entries of [B, side²] indices, enlarged."""
    entries = F.embedding(indices, rows).unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return F.interpolate(entries, size=size, mode="bicubic")


def joined(books: Any) -> Tensor:
    """Both books normalised whole, side by side."""
    return torch.cat([F.normalize(book, dim=-1) for book in books], dim=-1)
