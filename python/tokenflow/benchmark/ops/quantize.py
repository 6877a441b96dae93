"""quantize: two codebooks, one index. Peers search the joined rows, made beforehand."""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F

import tokenflow_ext as tfx
from tokenflow.benchmark import families
from tokenflow.benchmark.method import Call, Methods, Values
from tokenflow.benchmark.ops import _search

FAMILIES = True
LABEL = "N={n} K={k} {ds}+{dp} {family}"
CASES = [
    {"n": n, "k": 32768, "ds": 32, "dp": 8, "family": "random"}
    for n in (680, 2720, 16384)
]
TINY = {"n": 70, "k": 300, "ds": 5, "dp": 3, "family": "random"}
in_family = families.of_family
truth, judge = _search.truth, _search.judge
method = Methods()


def make(values: Values, device: torch.device) -> Any:
    """Return vectors and books, as given and as rows of unit length."""
    sizes = {k: values[k] for k in ("n", "k", "ds", "dp", "family")}
    halves = [values["ds"], values["dp"]]
    vectors, book = (t.to(device) for t in families.search(**sizes))
    semantic, pixel = (t.contiguous() for t in vectors.split(halves, 1))
    books = tuple(t.contiguous() for t in book.split(halves, 1))

    def reference(count: int) -> torch.Tensor:
        return tfx.reference.quantize(semantic[:count], pixel[:count], *books)

    return _search.namespace(
        semantic=semantic,
        pixel=pixel,
        books=books,
        query=tfx.prepare(semantic, pixel).rows,
        rows=tfx.prepare(*books).rows,
        unit=True,
        reference=reference,
    )


def work(values: Values) -> dict[str, float]:
    """The sweep over all pairs."""
    return _search.work(values["n"], values["k"], values["ds"] + values["dp"])


@method("ours", kind="ours")
def ours(case: Any) -> Call:
    """Books prepared beforehand."""
    handle = tfx.prepare(*case.books)
    return lambda: tfx.quantize(case.semantic, case.pixel, *case.books, prepared=handle)


@method("ours, unprepared", kind="ours")
def ours_unprepared(case: Any) -> Call:
    """Books prepared in the call."""
    return lambda: tfx.quantize(case.semantic, case.pixel, *case.books)


@method("ours, in float32", kind="ours")
def ours_in_float32(case: Any) -> Call:
    """Without the bytes: the sweep of machines and rows that bytes do not serve."""
    handle = tfx.prepare(*case.books)
    plain = dataclasses.replace(handle, packed=handle.packed.new_empty(0))
    return lambda: tfx.quantize(case.semantic, case.pixel, *case.books, prepared=plain)


@method("published", kind="published", takes=_search.matrices(7))
def published(case: Any) -> Call:
    """Both distance matrices, their squares for the log, a one-hot of the winner."""

    def call() -> torch.Tensor:
        total: Any = 0
        pairs = zip((case.semantic, case.pixel), case.books, strict=True)
        logged = []
        for z, book in pairs:
            z, e = F.normalize(z, dim=-1), F.normalize(book, dim=-1)
            d = z.square().sum(1, True) + e.square().sum(1)
            d = d - 2 * torch.einsum("nd,kd->nk", z, e)
            logged.append(d.square().sum())
            total = total + d
        indices = total.argmin(1)
        F.one_hot(indices, len(case.rows)).type(z.dtype)
        return indices

    return call


_search.add_peers(method)
