"""prepare: books made ready to be searched. Torch makes the joined rows alone."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import tokenflow_ext as tfx
from tokenflow.benchmark.method import Call, Methods, Values, compiled
from tokenflow.benchmark.ops import _entries, _pyramid
from tokenflow_ext.testing import make_books

LABEL = "K={k} {ds}+{dp}"
CASES = [{"k": 32768, "ds": 32, "dp": 8}]
TINY = {"k": 300, "ds": 5, "dp": 3}
method = Methods()


def make(values: Values, device: torch.device) -> Any:
    """Return two books."""
    books = make_books(values["k"], values["ds"], values["dp"], 0, device=device)
    return SimpleNamespace(books=books)


def truth(case: Any) -> Tensor:
    """Rows of unit length, in float64."""
    return _pyramid.joined([book.double() for book in case.books])


def judge(found: Any, right: Tensor, case: Any) -> dict[str, Any]:
    """The worst error of the rows."""
    error = _entries.worst_of(getattr(found, "rows", found), right)
    return {"error": error, "right": error <= 1e-6}


def work(values: Values) -> dict[str, float]:
    """Both books read once, the rows written once."""
    return {"copy": 8.0 * values["k"] * (values["ds"] + values["dp"])}


@method("ours", kind="ours")
def ours(case: Any) -> Call:
    """Everything a search needs."""
    return lambda: tfx.prepare(*case.books)


@method("published", kind="published")
def published(case: Any) -> Call:
    """Rows normalised and joined."""
    return lambda: _pyramid.joined(case.books)


@method("compiled", compiled=True)
def joined_compiled(case: Any) -> Call:
    """The same under torch.compile."""
    function = compiled(_pyramid.joined)
    return lambda: function(case.books)
