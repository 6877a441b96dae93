"""Nearest ×2 enlargement and a 3×3 convolution, in one pass.

An enlarged map holds every value four times, so three of four products of the
convolution are repeats. Nine 1×1 products on the small map are enough: with
Z_ab = W_ab · x for each tap (a, b), every output is a sum of nine shifted Z, and the
four outputs of a 2×2 block share them. The outer two taps of a row are themselves a
short convolution, for which Winograd's F(2, 2) saves one product in four: the CPU
kernel needs 6.25 per pixel instead of 36. The same identity makes the gradient that of
a 4×4 transposed convolution of stride 2, so the enlarged map is never stored either.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _library
from . import _checks, _layout


def upsample_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """Return the 3×3 convolution, padding 1, of x enlarged to twice its size.

    y[b, o, i, j] = bias[o] + Σ_{c, a, b'} weight[o, c, a, b'] ·
    x[b, c, ⌊(i + a − 1) / 2⌋, ⌊(j + b' − 1) / 2⌋], zero outside of x: what
    `conv2d(interpolate(x, scale_factor=2), weight, bias, padding=1)` computes.

    Under autocast x, weight and bias are cast as a convolution's are.

    Args:
        x: [B, C, H, W], float32, bfloat16 or float16, summed in float32; float64 takes
            the reference. H and W at least 1, any strides.
        weight: [Co, C, 3, 3], dtype and device of x.
        bias: [Co], likewise, or None.
        out: [B, Co, 2H, 2W], dtype and device of the result, sharing no memory with
            the arguments; filled and returned. Not differentiable.

    Returns:
        [B, Co, 2H, 2W], dtype of x, channels_last where x is. Differentiable in x,
        weight and bias.

    Raises:
        TypeError: A dtype is unsupported or differs from that of x.
        ValueError: A shape or device disagrees.
        RuntimeError: `out` is given and a gradient is asked for.
    """
    _checks.floating("upsample_conv", x=x, weight=weight, bias=bias, out=out)
    _check_shapes(x, weight, bias)
    _checks.same_device("upsample_conv", x=x, weight=weight, bias=bias, out=out)
    x, weight, bias = (
        _layout.autocast(x),
        _layout.autocast(weight),
        _layout.autocast(bias),
    )
    _checks.same_dtype("upsample_conv", x=x, weight=weight, bias=bias, out=out)
    if out is not None:
        size = (x.shape[0], weight.shape[0], 2 * x.shape[2], 2 * x.shape[3])
        _checks.out("upsample_conv", out, size, x=x, weight=weight, bias=bias)
        if x.dtype == torch.float64:
            return out.copy_(reference(x, weight, bias))
        _upsample_conv_out(x, weight, bias, out=out)
        return out
    if x.dtype == torch.float64:
        return reference(x, weight, bias)
    return _library.call(_upsample_conv, x, weight, bias)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`upsample_conv` in float64, one picture at a time; the dtype of x."""
    weight64 = weight.double()
    bias64 = None if bias is None else bias.double()
    pictures = [
        F.conv2d(
            F.interpolate(picture[None].double(), scale_factor=2.0, mode="nearest"),
            weight64,
            bias64,
            padding=1,
        ).to(x.dtype)
        for picture in x
    ]
    if not pictures:
        return _empty(x, weight)
    return torch.cat(pictures).contiguous(memory_format=_layout.memory_format(x))


def _check_shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(
            "upsample_conv: x must be [B, C, H, W] with C, H and W at least 1, "
            f"got {list(x.shape)}"
        )
    channels = x.shape[1]
    if weight.dim() != 4 or weight.shape[1:] != (channels, 3, 3) or not weight.shape[0]:
        raise ValueError(
            f"upsample_conv: weight must be [Co, {channels}, 3, 3] with Co at least 1, "
            f"got {list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"upsample_conv: bias must be [{weight.shape[0]}] as weight has outputs, "
            f"got {list(bias.shape)}"
        )


def _empty(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(
        (x.shape[0], weight.shape[0], 2 * x.shape[2], 2 * x.shape[3])
    ).contiguous(memory_format=_layout.memory_format(x))


def _fallback(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    enlarged = F.interpolate(x, scale_factor=2.0, mode="nearest")
    y = F.conv2d(enlarged, weight, bias, padding=1)
    return y.contiguous(memory_format=_layout.memory_format(x))


def _fallback_out(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor
) -> None:
    out.copy_(_fallback(x, weight, bias))


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _empty(x, weight)


def _fake_out(x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    return None


_upsample_conv = _library.define(
    "upsample_conv(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    fallback=_fallback,
    fake=_fake,
)

_upsample_conv_out = _library.define(
    "upsample_conv_out(Tensor x, Tensor weight, Tensor? bias, *, Tensor(a!) out) -> ()",
    fallback=_fallback_out,
    fake=_fake_out,
)

# The body of the CUDA kernel, which tests run on the CPU over the same grid.
_library.define(
    "upsample_conv_plain(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    fallback=_fallback,
    fake=_fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of a 4×4 transposed convolution of stride 2.

    Output row o reads input row ⌊(o + a − 1) / 2⌋ with tap a, so one input row meets
    four output rows, with the taps 2, 1 + 2, 0 + 1 and 0; so for columns.
    """
    x, weight = ctx.saved_tensors
    kernel = weight.transpose(0, 1).flip(2, 3)  # taps 2, 1, 0
    kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))
    kernel = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
    mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
    grad_x, grad_kernel, _ = torch.ops.aten.convolution_backward(
        grad, x, kernel, None, [2, 2], [1, 1], [1, 1], True, [0, 0], 1, mask
    )
    grad_weight = grad_bias = None
    if ctx.needs_input_grad[1]:
        taps = grad_kernel[:, :, :3] + grad_kernel[:, :, 1:]
        taps = taps[..., :3] + taps[..., 1:]
        grad_weight = taps.flip(2, 3).transpose(0, 1)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        grad_bias = grad.sum(dim=(0, 2, 3))
    return grad_x, grad_weight, grad_bias


_library.autograd(_upsample_conv, _backward, _setup)
