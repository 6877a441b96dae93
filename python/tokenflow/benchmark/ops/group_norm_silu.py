"""group_norm_silu: GroupNorm and SiLU, at the shapes of the decoders.

Published is the norm, then x · sigmoid(x), in either memory format.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenflow_ext as tfx
from tokenflow.benchmark.method import Call, Methods, Values, compiled
from tokenflow.benchmark.ops import _maps

LABEL = "{batch}×{channels}×{side}²"
PLAIN = ((512, 16), (512, 32), (256, 32), (256, 64), (256, 128), (128, 128), (128, 256))
ENHANCED = ((1024, 32), (512, 128), (256, 256))  # the others are those above
CASES = [
    {"batch": batch, "channels": c, "side": side}
    for batch, shapes in ((1, (*PLAIN, *ENHANCED)), (8, PLAIN))
    for c, side in shapes
]
TINY = {"batch": 2, "channels": 64, "side": 4}
GROUPS, EPS = 32, 1e-6
method = Methods()


def make(values: Values, device: torch.device) -> Any:
    """Return a map whose channels differ, weight and bias."""
    batch, c, side = values["batch"], values["channels"], values["side"]
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(batch, c, side, side, generator=draw)
    x = x + torch.randn(c, 1, 1, generator=draw)
    weight, bias = torch.randn(2, c, generator=draw)
    x, weight, bias = (t.to(device) for t in (x, weight, bias))
    return SimpleNamespace(x=x, weight=weight, bias=bias, part=_part)


def _part(y: Tensor) -> Tensor:
    return y[[0, -1]]


def truth(case: Any) -> Tensor:
    """The first and the last picture, in float64."""
    x, weight, bias = (t.double() for t in (_part(case.x), case.weight, case.bias))
    return published(x, weight, bias)


def published(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The published form."""
    y = F.group_norm(x, GROUPS, weight, bias, EPS)
    return y * torch.sigmoid(y)


def in_place(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU over the norm's own result."""
    return F.silu(F.group_norm(x, GROUPS, weight, bias, EPS), inplace=True)


judge = _maps.judge(lambda case: published(_part(case.x), case.weight, case.bias))


def work(values: Values) -> dict[str, float]:
    """The map read once and written once."""
    return {"copy": 8.0 * values["batch"] * values["channels"] * values["side"] ** 2}


@method("ours", kind="ours")
def ours(case: Any) -> Call:
    """NCHW."""
    return lambda: tfx.group_norm_silu(case.x, case.weight, case.bias)


@method("ours, out=", kind="ours", fills="ours")
def ours_out(case: Any) -> Call:
    """Into room that is there."""
    out = _maps.poisoned(case.x, case.x.shape)
    return lambda: tfx.group_norm_silu(case.x, case.weight, case.bias, out=out)


@method("ours, channels_last", kind="ours")
def ours_last(case: Any) -> Call:
    """channels_last."""
    (x,) = _maps.last(case.x)
    return lambda: tfx.group_norm_silu(x, case.weight, case.bias)


@method("ours, channels_last, out=", kind="ours", fills="ours, channels_last")
def ours_last_out(case: Any) -> Call:
    """Both."""
    (x,) = _maps.last(case.x)
    out = _maps.poisoned(x, case.x.shape)
    return lambda: tfx.group_norm_silu(x, case.weight, case.bias, out=out)


@method("eager", kind="published")
def eager(case: Any) -> Call:
    """Norm, then x · sigmoid(x); NCHW."""
    return lambda: published(case.x, case.weight, case.bias)


@method("eager, channels_last", kind="published")
def eager_last(case: Any) -> Call:
    """The same, channels_last."""
    (x,) = _maps.last(case.x)
    return lambda: published(x, case.weight, case.bias)


@method("in-place SiLU")
def in_place_silu(case: Any) -> Call:
    """Norm, then SiLU over its result; NCHW."""
    return lambda: in_place(case.x, case.weight, case.bias)


@method("in-place SiLU, channels_last")
def in_place_silu_last(case: Any) -> Call:
    """The same, channels_last."""
    (x,) = _maps.last(case.x)
    return lambda: in_place(x, case.weight, case.bias)


@method("compiled", compiled=True)
def published_compiled(case: Any) -> Call:
    """The published form under torch.compile, NCHW."""
    function = compiled(published)
    return lambda: function(case.x, case.weight, case.bias)
