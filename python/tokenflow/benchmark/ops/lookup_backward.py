"""lookup_backward: the gradient of entries, added into both books.

Ours and published are given books as they are and go through their normalisation too;
the others, and ours on normalised books, add rows and no more.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenflow_ext as tfx
from tokenflow.benchmark.method import Call, Methods, Values
from tokenflow.benchmark.ops import _entries

LABEL = "N={n} K={k} {ds}+{dp}"
CASES = [{"n": n, "k": 32768, "ds": 32, "dp": 8} for n in (16384, 65536)]
TINY = {"n": 70, "k": 300, "ds": 5, "dp": 3}
GRADIENTS = True
method = Methods()


def make(values: Values, device: torch.device) -> Any:
    """Return the case of a lookup and the gradient of its result."""
    case = _entries.make(values, device)
    draw = torch.Generator().manual_seed(2)
    width = values["ds"] + values["dp"]
    case.grad = torch.randn(values["n"], width, generator=draw).to(device)
    case.widths = [values["ds"], values["dp"]]
    return case


def truth(case: Any) -> dict[str, Tensor]:
    """Gradients in float64, through the normalisation and without it."""
    grad = case.grad.double()
    books = [book.double().requires_grad_() for book in case.books]
    rows = torch.cat([F.normalize(book, dim=-1) for book in books], dim=-1)
    whole = torch.autograd.grad(rows[case.indices], books, grad)
    plain = torch.zeros_like(rows).index_add_(0, case.indices, grad)
    return {"normalised": torch.cat(whole, 1), "plain": plain.detach()}


def judge(found: Any, right: dict[str, Tensor], case: Any) -> dict[str, Any]:
    """The worst error against whichever of the two gradients is nearer."""
    found = torch.cat(found, 1) if isinstance(found, tuple | list) else found
    error = min(_entries.worst_of(found, r) for r in right.values())
    return {"error": error, "right": error <= 1e-3}


def work(values: Values) -> dict[str, float]:
    """Gradients are read, their sums added, and both books filled with zeros."""
    width = 4.0 * (values["ds"] + values["dp"])
    return {"copy": values["n"] * (3 * width + 8) + values["k"] * width}


def _backward(result: Tensor, books: list[Tensor], grad: Tensor) -> Call:
    return lambda: torch.autograd.grad(result, books, grad, retain_graph=True)


@method("ours", kind="ours")
def ours(case: Any) -> Call:
    """Through the normalisation of the rows that were read."""
    books = [book.clone().requires_grad_() for book in case.books]
    return _backward(tfx.lookup(case.indices, *books), books, case.grad)


@method("ours, normalised books", kind="ours")
def ours_unit(case: Any) -> Call:
    """Rows added up, as the peers do."""
    books = [book.clone().requires_grad_() for book in case.unit_books]
    result = tfx.lookup(case.indices, *books, normalize=False)
    return _backward(result, books, case.grad)


@method("published", kind="published")
def published(case: Any) -> Call:
    """Through both books normalised whole."""
    books = [book.clone().requires_grad_() for book in case.books]
    rows = torch.cat([F.normalize(book, dim=-1) for book in books], dim=-1)
    return _backward(F.embedding(case.indices, rows), books, case.grad)


@method("embedding_dense_backward × 2")
def dense(case: Any) -> Call:
    """What two embeddings side by side go back through."""
    k = len(case.rows)
    backward = torch.ops.aten.embedding_dense_backward

    def call() -> tuple[Tensor, ...]:
        halves = case.grad.split(case.widths, 1)
        return tuple(backward(h, case.indices, k, -1, False) for h in halves)

    return call


@method("index_add")
def index_add(case: Any) -> Call:
    """Rows added into one joined book."""
    return lambda: torch.zeros_like(case.rows).index_add_(0, case.indices, case.grad)
