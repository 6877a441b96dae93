"""group_norm_silu_backward: what training asks of norm and SiLU before convolutions.

The gradients of map, weight and bias, through a graph made once; the peers are torch's
own for the norm and SiLU, whose activations they keep. Maps are bfloat16 where training
is, and channels_last where convolutions leave them so.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenflow_ext as tfx
from tokenflow.benchmark.method import Call, Methods, Values
from tokenflow.benchmark.ops import _maps

LABEL = "{batch}×{channels}×{side}² {dtype}"
SHAPES = ((16, 32, 64), (16, 64, 32), (16, 128, 8), (1, 512, 32), (1, 128, 256))
CASES = [
    {"batch": batch, "channels": c, "side": side, "dtype": dtype}
    for dtype in ("bfloat16", "float32")
    for batch, c, side in SHAPES
]
TINY = {"batch": 2, "channels": 64, "side": 4, "dtype": "bfloat16"}
GRADIENTS = True
GROUPS, EPS = 32, 1e-6
method = Methods()
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


def make(values: Values, device: torch.device) -> Any:
    """Return a map whose channels differ, weight, bias, and the result's gradient."""
    batch, c, side = values["batch"], values["channels"], values["side"]
    draw = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, batch, c, side, side, generator=draw)
    x = x + torch.randn(c, 1, 1, generator=draw)
    weight, bias = torch.randn(2, c, generator=draw)
    narrow = getattr(torch, values["dtype"])
    return SimpleNamespace(
        x=x.to(device, narrow),
        grad=grad.to(device, narrow),
        weight=weight.to(device),
        bias=bias.to(device),
    )


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Norm, then SiLU."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return F.silu(F.group_norm(x, GROUPS, weight, bias, EPS))


def _leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def truth(case: Any) -> tuple[Tensor, ...]:
    """The three gradients in float64."""
    leaves = _leaves(case.x.double(), case.weight.double(), case.bias.double())
    return torch.autograd.grad(eager(*leaves), leaves, case.grad.double())


def judge(found: Any, right: tuple[Tensor, ...], case: Any) -> dict[str, Any]:
    """The worst error of the three, each relative to its largest value.

    Right is what errs by no more than the rounding of the dtype and of long sums.
    """
    error = max(
        _maps.worst(a, b) / float(b.abs().max())
        for a, b in zip(found, right, strict=True)
    )
    return {"error": error, "right": error <= 8 * torch.finfo(case.x.dtype).eps + 1e-4}


def work(values: Values) -> dict[str, float]:
    """The map and the gradient read once, a gradient written once."""
    size = getattr(torch, values["dtype"]).itemsize
    area = values["side"] ** 2
    return {"copy": 3.0 * size * values["batch"] * values["channels"] * area}


def _backward(norm: Norm, case: Any, *, last: bool = False) -> Call:
    x, grad = _maps.last(case.x, case.grad) if last else (case.x, case.grad)
    leaves = _leaves(x, case.weight, case.bias)
    result = norm(*leaves)
    return lambda: torch.autograd.grad(result, leaves, grad, retain_graph=True)


@method("ours", kind="ours")
def ours(case: Any) -> Call:
    """NCHW."""
    return _backward(tfx.group_norm_silu, case)


@method("ours, channels_last", kind="ours")
def ours_last(case: Any) -> Call:
    """channels_last."""
    return _backward(tfx.group_norm_silu, case, last=True)


@method("eager", kind="published")
def eager_plain(case: Any) -> Call:
    """Torch's gradients of SiLU and of the norm; NCHW."""
    return _backward(eager, case)


@method("eager, channels_last", kind="published")
def eager_last(case: Any) -> Call:
    """The same, channels_last."""
    return _backward(eager, case, last=True)
