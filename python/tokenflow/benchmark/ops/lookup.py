"""lookup: indices into entries. Peers but the published form read normalised books."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenflow_ext as tfx
from tokenflow.benchmark.method import Call, Methods, Values, compiled
from tokenflow.benchmark.ops import _entries

LABEL = "N={n} K={k} {ds}+{dp}"
CASES = [{"n": n, "k": 32768, "ds": 32, "dp": 8} for n in (256, 16384, 65536)]
TINY = {"n": 70, "k": 300, "ds": 5, "dp": 3}
make = _entries.make
method = Methods()


def truth(case: Any) -> Tensor:
    """The definition; the rows are float32 by it."""
    return tfx.reference.lookup(case.indices, *case.books).double()


def judge(found: Tensor, right: Tensor, case: Any) -> dict[str, Any]:
    """The worst error; float32's own rounding of a row is allowed."""
    error = _entries.worst_of(found, right)
    return {"error": error, "right": error <= 1e-6}


def work(values: Values) -> dict[str, float]:
    """Every entry that is asked for is read once and written once."""
    return {"copy": values["n"] * (8.0 * (values["ds"] + values["dp"]) + 8)}


@method("ours", kind="ours")
def ours(case: Any) -> Call:
    """Normalises what it reads."""
    return lambda: tfx.lookup(case.indices, *case.books)


@method("ours, normalised books", kind="ours")
def ours_unit(case: Any) -> Call:
    """Reads books that were normalised, as the peers do."""
    return lambda: tfx.lookup(case.indices, *case.unit_books, normalize=False)


@method("published", kind="published")
def published(case: Any) -> Call:
    """Both books normalised whole, joined, then read."""

    def call() -> Tensor:
        halves = [F.normalize(book, dim=-1) for book in case.books]
        return F.embedding(case.indices, torch.cat(halves, dim=-1))

    return call


def two(indices: Tensor, semantic_book: Tensor, pixel_book: Tensor) -> Tensor:
    """Two embeddings side by side."""
    halves = [F.embedding(indices, book) for book in (semantic_book, pixel_book)]
    return torch.cat(halves, dim=-1)


@method("embedding × 2 + cat")
def embedding_twice(case: Any) -> Call:
    """Two embeddings, joined."""
    return lambda: two(case.indices, *case.unit_books)


@method("one joined embedding")
def joined(case: Any) -> Call:
    """One embedding of a book that was joined."""
    return lambda: F.embedding(case.indices, case.rows)


@method("index_select")
def index_select(case: Any) -> Call:
    """The same by index_select."""
    return lambda: case.rows.index_select(0, case.indices)


@method("compiled", compiled=True)
def two_compiled(case: Any) -> Call:
    """Two embeddings under torch.compile."""
    function = compiled(two)
    return lambda: function(case.indices, *case.unit_books)


@method("numpy", library="numpy", device="cpu")
def numpy(case: Any) -> Call:
    """numpy.take on the joined book."""
    rows, indices = case.rows.numpy(), case.indices.numpy()
    return lambda: torch.from_numpy(rows.take(indices, axis=0))
