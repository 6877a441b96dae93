"""nearest: one codebook, Euclidean, as any VQ model has it."""

from typing import Any

import torch

import tokenflow_ext as tfx
from tokenflow.benchmark import families
from tokenflow.benchmark.method import Call, Methods, Values
from tokenflow.benchmark.ops import _search

FAMILIES = True
LABEL = "D={d} K={k} N={n} {family}"
CASES = [
    {"n": n, "k": k, "d": d, "family": "random", "compile": k == 32768}
    for d in (4, 8, 16, 32, 64, 256)
    for n, k in ((4096, 1024), (4096, 32768), (1024, 262144))
]
TINY = {"n": 70, "k": 300, "d": 5, "family": "random", "compile": True}
truth, judge = _search.truth, _search.judge
method = Methods()


def in_family(values: Values, family: str) -> Values:
    """The same case with other data; of `mini` the semantic half."""
    found = families.of_family(values, family)
    return {**found, "d": 16} if family == "mini" else found


def make(values: Values, device: torch.device) -> Any:
    """Return vectors and a book."""
    n, k, d, family = (values[key] for key in ("n", "k", "d", "family"))
    pixel = 1 if family == "fresh" else 0  # made of halves of unit length
    vectors, book = families.search(n, k, d - pixel, pixel, family)
    vectors, book = (t[:, :d].contiguous().to(device) for t in (vectors, book))

    def reference(count: int) -> torch.Tensor:
        return tfx.reference.nearest(vectors[:count], book)

    return _search.namespace(query=vectors, rows=book, unit=False, reference=reference)


def work(values: Values) -> dict[str, float]:
    """The sweep over all pairs."""
    return _search.work(values["n"], values["k"], values["d"])


@method("ours", kind="ours")
def ours(case: Any) -> Call:
    """The book prepared beforehand."""
    handle = tfx.prepare(case.rows, normalize=False)
    return lambda: tfx.nearest(case.query, case.rows, prepared=handle)


@method("ours, unprepared", kind="ours")
def ours_unprepared(case: Any) -> Call:
    """The book prepared in the call."""
    return lambda: tfx.nearest(case.query, case.rows)


@method("published", kind="published", takes=_search.matrices(2))
def published(case: Any) -> Call:
    """torch.cdist and argmin, as models without a library of it do."""
    return lambda: torch.cdist(case.query, case.rows).argmin(1)


_search.add_peers(method)
