"""code_histogram: how often each code occurs."""

from types import SimpleNamespace
from typing import Any

import torch

import tokenflow_ext as tfx
from tokenflow.benchmark.method import Call, Methods, Values
from tokenflow_ext.testing import make_indices

LABEL = "N={n} K={k}"
CASES = [{"n": n, "k": 32768} for n in (8170, 1 << 20)]
TINY = {"n": 100, "k": 40}
method = Methods()


def make(values: Values, device: torch.device) -> Any:
    """Return indices in [0, K)."""
    k = values["k"]
    indices = make_indices((values["n"],), k, 1, device).clamp(0, k - 1)
    return SimpleNamespace(indices=indices, k=k)


def truth(case: Any) -> torch.Tensor:
    """The definition."""
    return tfx.reference.code_histogram(case.indices, case.k)


def judge(found: torch.Tensor, right: torch.Tensor, case: Any) -> dict[str, Any]:
    """Count the codes that were counted wrong."""
    wrong = int((found.to(right.device) != right).sum())
    return {"mismatches": wrong, "judged": len(right), "right": wrong == 0}


def work(values: Values) -> dict[str, float]:
    """Reads the indices, writes the counts."""
    return {"copy": 8.0 * values["n"] + 8.0 * values["k"]}


@method("ours", kind="ours")
def ours(case: Any) -> Call:
    """One call."""
    return lambda: tfx.code_histogram(case.indices, case.k)


@method("bincount", kind="published")
def bincount(case: Any) -> Call:
    """torch.bincount."""
    return lambda: torch.bincount(case.indices, minlength=case.k)


@method("scatter_add")
def scatter_add(case: Any) -> Call:
    """Ones added into zeros."""
    ones = torch.ones_like(case.indices)
    return lambda: torch.zeros(
        case.k, dtype=torch.int64, device=ones.device
    ).scatter_add_(0, case.indices, ones)


@method("numpy", library="numpy", device="cpu")
def numpy(case: Any) -> Call:
    """numpy.bincount."""
    import numpy as np

    indices = case.indices.numpy()
    return lambda: torch.from_numpy(np.bincount(indices, minlength=case.k))
