"""upsample_conv: nearest ×2 and a 3×3 convolution, at the shapes of the decoders.

Published is the two steps, in either memory format. The reformulations have their
weights folded beforehand.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenflow_ext as tfx
from tokenflow.benchmark.method import Call, Methods, Values, compiled
from tokenflow.benchmark.ops import _maps

LABEL = "{batch}×{channels}×{side}²→{double}²"
PLAIN = ((512, 16), (256, 32), (256, 64), (128, 128))
ENHANCED = ((1024, 16), (512, 32), (512, 64), (256, 128))
CASES = [
    {"batch": batch, "channels": c, "side": side, "double": 2 * side}
    for batch in (1, 8)
    for c, side in (*PLAIN, *ENHANCED)
]
TINY = {"batch": 2, "channels": 8, "side": 4, "double": 8}
_JUDGED = 16  # outputs of the first and the last picture that are compared
method = Methods()


def make(values: Values, device: torch.device) -> Any:
    """Return a map, weights and bias, about of unit size."""
    batch, c, side = values["batch"], values["channels"], values["side"]
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(batch, c, side, side, generator=draw)
    weight = torch.randn(c, c, 3, 3, generator=draw) / (9 * c) ** 0.5
    bias = torch.randn(c, generator=draw)
    x, weight, bias = (t.to(device) for t in (x, weight, bias))
    return SimpleNamespace(
        x=x, weight=weight, bias=bias, size=(batch, c, 2 * side, 2 * side), part=_part
    )


def _part(y: Tensor) -> Tensor:
    return y[[0, -1], :_JUDGED]


def truth(case: Any) -> Tensor:
    """Some outputs of the first and the last picture, in float64."""
    x, weight = case.x[[0, -1]].double(), case.weight[:_JUDGED].double()
    return two_steps(x, weight, case.bias[:_JUDGED].double())


def two_steps(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The published form."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)


def _eager(case: Any) -> Tensor:
    weight, bias = case.weight[:_JUDGED], case.bias[:_JUDGED]
    return two_steps(case.x[[0, -1]], weight, bias)


judge = _maps.judge(_eager)


def work(values: Values) -> dict[str, float]:
    """Multiply-adds of the direct convolution, and the maps read and written once."""
    batch, c, side = values["batch"], values["channels"], values["side"]
    area = batch * side * side
    return {"fma": 2.0 * area * 4 * 9 * c * c, "copy": 4.0 * area * c * 5}


@method("ours", kind="ours")
def ours(case: Any) -> Call:
    """In and out as NCHW."""
    return lambda: tfx.upsample_conv(case.x, case.weight, case.bias)


@method("ours, out=", kind="ours", fills="ours")
def ours_out(case: Any) -> Call:
    """Into room that is there."""
    out = _maps.poisoned(case.x, case.size)
    return lambda: tfx.upsample_conv(case.x, case.weight, case.bias, out=out)


@method("ours, channels_last", kind="ours")
def ours_last(case: Any) -> Call:
    """In and out as channels_last."""
    (x,) = _maps.last(case.x)
    return lambda: tfx.upsample_conv(x, case.weight, case.bias)


@method("ours, channels_last, out=", kind="ours", fills="ours, channels_last")
def ours_last_out(case: Any) -> Call:
    """Both."""
    (x,) = _maps.last(case.x)
    out = _maps.poisoned(x, case.size)
    return lambda: tfx.upsample_conv(x, case.weight, case.bias, out=out)


@method("eager", kind="published")
def eager(case: Any) -> Call:
    """Two steps, NCHW."""
    return lambda: two_steps(case.x, case.weight, case.bias)


@method("eager, channels_last", kind="published")
def eager_last(case: Any) -> Call:
    """Two steps, channels_last."""
    x, weight = _maps.last(case.x, case.weight)
    return lambda: two_steps(x, weight, case.bias)


@method("compiled", compiled=True)
def two_steps_compiled(case: Any) -> Call:
    """Two steps under torch.compile, channels_last."""
    x, weight = _maps.last(case.x, case.weight)
    function = compiled(two_steps)
    return lambda: function(x, weight, case.bias)


def folded(weight: Tensor) -> Tensor:
    """4×4 weights of the transposed convolution of stride 2 that does both steps."""
    fold = weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    return fold @ weight.transpose(0, 1) @ fold.T


def _transposed(x: Tensor, kernel: Tensor, bias: Tensor) -> Call:
    return lambda: F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


@method("conv_transpose 4×4")
def transposed(case: Any) -> Call:
    """One transposed convolution, NCHW."""
    return _transposed(case.x, folded(case.weight), case.bias)


@method("conv_transpose 4×4, channels_last")
def transposed_last(case: Any) -> Call:
    """One transposed convolution, channels_last."""
    return _transposed(*_maps.last(case.x, folded(case.weight)), case.bias)


def quarters(weight: Tensor) -> Tensor:
    """2×2 weights of the four outputs of a cell, [4 · Co, C, 2, 2].

    Output (p, q) of a cell sees rows p − 1 and p of the map around it: the first takes
    tap 0 for p = 0 and 0 + 1 for p = 1, the second the rest; so for columns.
    """
    take = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
    return torch.einsum("pai,qbj,ocij->pqocab", take, take, weight).flatten(0, 2)


def _sub_pixel(x: Tensor, kernel: Tensor, bias: Tensor) -> Call:
    """One 2×2 convolution of the padded map, four times the outputs; interleave."""
    count, biases = len(bias), bias.repeat(4)

    def call() -> Tensor:
        y = F.conv2d(x, kernel, biases, padding=1)  # one row and one column more
        h, w = x.shape[2:]
        last = not x.is_contiguous()
        out = torch.empty(
            (len(x), count, 2 * h, 2 * w),
            dtype=x.dtype,
            device=x.device,
            memory_format=_maps.LAST if last else torch.contiguous_format,
        )
        for p in range(2):
            for q in range(2):
                part = slice((2 * p + q) * count, (2 * p + q + 1) * count)
                out[:, :, p::2, q::2] = y[:, part, p : p + h, q : q + w]
        return out

    return call


@method("sub-pixel 2×2")
def sub_pixel(case: Any) -> Call:
    """NCHW."""
    return _sub_pixel(case.x, quarters(case.weight), case.bias)


@method("sub-pixel 2×2, channels_last")
def sub_pixel_last(case: Any) -> Call:
    """channels_last."""
    return _sub_pixel(*_maps.last(case.x, quarters(case.weight)), case.bias)
