"""pyramid_quantize: coarse to fine. The judge is the reference, token by token.

A peer in float32 flips near-ties, and the tokens after a flip follow it: that many of
its tokens differ says nothing bad of it, and is shown.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenflow_ext as tfx
from tokenflow.benchmark import families
from tokenflow.benchmark.method import Call, Methods, Values
from tokenflow.benchmark.ops import _pyramid, _search

FAMILIES = True
LABEL = "{tokens} tokens B={batch} K={k} {ds}+{dp} {family}"
CASES = [
    {"tokens": t, "batch": b, "k": 32768, "ds": 32, "dp": 8, "family": "random"}
    for t, b in ((817, 1), (2227, 1), (817, 8))
]
TINY = {"tokens": 5, "batch": 2, "k": 300, "ds": 5, "dp": 3, "family": "random"}
make = _pyramid.make
method = Methods()


def in_family(values: Values, family: str) -> Values:
    """The same case with other data; `mini` brings its schedule too."""
    found = families.of_family(values, family)
    return {**found, "tokens": 204} if family == "mini" else found


def truth(case: Any) -> Tensor:
    """Tokens of the first picture by the definition."""
    first = case.features[:1]
    return tfx.reference.pyramid_quantize(first, *case.books, case.scales)[0]


def judge(found: Any, right: Tensor, case: Any) -> dict[str, Any]:
    """Count the tokens that differ; most must not."""
    wrong = int((found[0][:1] != right).sum())
    right_enough = wrong <= 0.5 * right.numel()
    return {"mismatches": wrong, "judged": right.numel(), "right": right_enough}


def work(values: Values) -> dict[str, float]:
    """The sweeps of all scales."""
    n = values["tokens"] * values["batch"]
    return _search.work(n, values["k"], values["ds"] + values["dp"])


@method("ours", kind="ours")
def ours(case: Any) -> Call:
    """Books prepared beforehand."""
    handle = tfx.prepare(*case.books)
    given = (case.features, *case.books, case.scales)
    return lambda: tfx.pyramid_quantize(*given, prepared=handle)


@method("ours, unprepared", kind="ours")
def ours_unprepared(case: Any) -> Call:
    """Books prepared in the call."""
    return lambda: tfx.pyramid_quantize(case.features, *case.books, case.scales)


def _largest(values: Values) -> float:
    side = _pyramid.SCHEDULES[values["tokens"]][-1]
    return values["batch"] * side * side * values["k"] * 4.0


def _loop(case: Any, rows_of: Any, nearest: Any) -> Call:
    """Pool, find, enlarge, subtract; `rows_of()` gives the entries at every scale."""

    def call() -> tuple[Tensor, Tensor]:
        rest, total, found = case.features, torch.zeros_like(case.features), []
        for side in case.scales:
            query, rows = _pyramid.pooled(rest, side, case.widths), rows_of()
            indices = nearest(query, rows).unflatten(0, (len(rest), -1))
            large = _pyramid.enlarged(rows, indices, side, rest.shape[2:])
            total, rest = total + large, rest - large
            found.append(indices)
        return torch.cat(found, dim=1), total

    return call


@method("published", kind="published", takes=lambda values: 7 * _largest(values))
def published(case: Any) -> Call:
    """At every scale: books normalised, both matrices, their squares, one-hot."""

    def nearest(query: Tensor, rows: Tensor) -> Tensor:
        halves = zip(
            query.split(case.widths, 1), rows.split(case.widths, 1), strict=True
        )
        total: Any = 0
        logged = []
        for (z, e), weight in zip(halves, (1.0, case.weight), strict=True):
            d = z.square().sum(1, True) + e.square().sum(1)
            d = d - 2 * torch.einsum("nd,kd->nk", z, e)
            logged.append(d.square().sum())
            total = total + (d if weight == 1.0 else weight * d)
        indices = total.argmin(1)
        F.one_hot(indices, len(rows)).type(z.dtype)
        return indices

    return _loop(case, lambda: _pyramid.joined(case.books), nearest)


def _weights(case: Any) -> Tensor | None:
    """Factors of the features where the pixel half weighs something else than one."""
    if case.weight == 1.0:
        return None
    scale = torch.ones(sum(case.widths), device=case.rows.device)
    scale[case.widths[0] :] = case.weight
    return scale


@method("loop over product + argmax", takes=_largest)
def products(case: Any) -> Call:
    """At every scale: one product with entries normalised beforehand."""
    scale = _weights(case)

    def nearest(query: Tensor, rows: Tensor) -> Tensor:
        return ((query if scale is None else query * scale) @ rows.T).argmax(1)

    return _loop(case, lambda: case.rows, nearest)


@method("loop over chunks 256 × 2048")
def chunks(case: Any) -> Call:
    """At every scale: products that stay in the cache."""
    zero = torch.zeros(len(case.rows), device=case.rows.device)
    step = 256 if zero.device.type == "cpu" else 16384

    def nearest(query: Tensor, rows: Tensor) -> Tensor:
        parts = [_search.in_chunks(part, rows, zero) for part in query.split(step)]
        return torch.cat(parts)

    return _loop(case, lambda: case.rows, nearest)
