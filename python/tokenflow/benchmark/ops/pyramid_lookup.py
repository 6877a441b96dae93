"""pyramid_lookup: indices of all scales into one map. Peers loop over the scales."""

from typing import Any

import torch
from torch import Tensor

import tokenflow_ext as tfx
from tokenflow.benchmark.method import Call, Methods, Values
from tokenflow.benchmark.ops import _entries, _pyramid
from tokenflow_ext.testing import make_indices

LABEL = "{tokens} tokens B={batch} K={k} {ds}+{dp}"
CASES = [{"tokens": 817, "batch": b, "k": 32768, "ds": 32, "dp": 8} for b in (1, 16)]
TINY = {"tokens": 5, "batch": 2, "k": 300, "ds": 5, "dp": 3}
method = Methods()


def make(values: Values, device: torch.device) -> Any:
    """Return indices, books and the schedule."""
    case = _pyramid.make(values, device)
    shape, k = (values["batch"], values["tokens"]), values["k"]
    case.indices = make_indices(shape, k, 1, device).clamp(0, k - 1)
    return case


def truth(case: Any) -> Tensor:
    """The definition of the first and the last picture, in float64."""
    books = [book.double() for book in case.books]
    return tfx.reference.pyramid_lookup(case.indices[[0, -1]], *books, case.scales)


def judge(found: Tensor, right: Tensor, case: Any) -> dict[str, Any]:
    """The worst error."""
    error = _entries.worst_of(found[[0, -1]], right)
    return {"error": error, "right": error <= 1e-4}


def work(values: Values) -> dict[str, float]:
    """Indices and entries are read, the map is written."""
    side = _pyramid.SCHEDULES[values["tokens"]][-1]
    width = 4.0 * (values["ds"] + values["dp"])
    each = values["tokens"] * (width + 8) + side * side * width
    return {"copy": values["batch"] * each}


@method("ours", kind="ours")
def ours(case: Any) -> Call:
    """One call."""
    return lambda: tfx.pyramid_lookup(case.indices, *case.books, case.scales)


def _loop(case: Any, rows_of: Any) -> Call:
    counts, size = [side * side for side in case.scales], [case.scales[-1]] * 2

    def call() -> Tensor:
        total: Any = 0
        parts = case.indices.split(counts, dim=1)
        for side, part in zip(case.scales, parts, strict=True):
            total = total + _pyramid.enlarged(rows_of(), part, side, size)
        return total

    return call


@method("published", kind="published")
def published(case: Any) -> Call:
    """Both books normalised whole at every scale."""
    return _loop(case, lambda: _pyramid.joined(case.books))


@method("loop, normalised once")
def normalised_once(case: Any) -> Call:
    """Both books normalised whole, once in the call."""

    def call() -> Tensor:
        rows = _pyramid.joined(case.books)
        return _loop(case, lambda: rows)()

    return call


@method("loop, normalised beforehand")
def normalised_before(case: Any) -> Call:
    """One joined book that was normalised."""
    return _loop(case, lambda: case.rows)
