"""A 3×3 convolution with what stands around it in a residual block, in one pass.

GroupNorm with SiLU in front, bias and the residual behind are done on the way, so only
x is read and only the result is written. Float32 on the CPU takes Winograd's
F(2×2, 3×3): 16 products for four outputs instead of 36. The transformed weights are
"panels", 16/9 the size of the weights, which a module keeps. Everything else is
`group_norm_silu` and torch's own convolution.
Sources: Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray,
arXiv:1509.09308.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _library
from . import _checks, _layout
from . import group_norm_silu as norms

MIN_CHANNELS = 32  # of either side, below which torch's own convolution is faster


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    num_groups: int = 32,
    eps: float = 1e-6,
    residual: Tensor | None = None,
) -> Tensor:
    """Return residual + conv2d(silu(group_norm(x)), weight, bias, padding=1).

    Without norm_weight nothing is normed or activated; without residual nothing added.
    Under autocast x, weight, bias and residual are cast as a convolution's are.

    Args:
        x: [B, C, H, W], float32, bfloat16 or float16; float64 takes the reference. H
            and W at least 1, any strides.
        weight: [Co, C, 3, 3], dtype and device of x.
        bias: [Co], likewise, or None.
        norm_weight: [C], any of these dtypes, device of x, or None.
        norm_bias: [C], likewise; given exactly where norm_weight is.
        num_groups: Divides C.
        eps: Added to the variance, at least 0.
        residual: [B, Co, H, W], dtype and device of x, or None.

    Returns:
        [B, Co, H, W], dtype of x, channels_last where x is. Differentiable once in all
        tensors.

    Raises:
        TypeError: A dtype is unsupported or differs from that of x.
        ValueError: A shape or device disagrees, num_groups does not divide C, eps is
            negative, one of norm_weight and norm_bias comes alone.
    """
    norm = norm_weight, norm_bias, num_groups, eps
    return packed_conv3x3(None, x, weight, bias, norm, residual)


Norm = tuple[Tensor | None, Tensor | None, int, float]  # weight, bias, num_groups, eps


def packed_conv3x3(
    panels: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    residual: Tensor | None,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """`conv3x3` with what `pack` made of the weight, or None.

    The result has `memory_format`, by default that of x.
    """
    norm_weight, norm_bias, num_groups, eps = norm
    maps = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    norms_given = {"norm_weight": norm_weight, "norm_bias": norm_bias}
    _checks.floating("conv3x3", **maps, **norms_given)
    _check_shapes(x, weight, bias, residual)
    if memory_format is None:
        memory_format = _layout.memory_format(x)
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError(
            "conv3x3: norm_weight and norm_bias must come together, got one of them"
        )
    if norm_weight is not None and norm_bias is not None:
        norms.check_arguments(
            "conv3x3", x, num_groups, eps, norm_weight=norm_weight, norm_bias=norm_bias
        )
    _checks.same_device("conv3x3", **maps, **norms_given)
    x, weight = _layout.autocast(x), _layout.autocast(weight)
    bias, residual = _layout.autocast(bias), _layout.autocast(residual)
    _checks.same_dtype("conv3x3", x=x, weight=weight, bias=bias, residual=residual)
    if x.dtype == torch.float64:
        y = reference(
            x,
            weight,
            bias,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            num_groups=num_groups,
            eps=eps,
            residual=residual,
        )
        return y.contiguous(memory_format=memory_format)
    last = memory_format == torch.channels_last
    if not takes(x, weight):
        return composed(x, weight, bias, *norm, residual, None, last)
    if norm_weight is not None and norm_bias is not None:
        norm_weight, norm_bias = norm_weight.float(), norm_bias.float()
    return _library.call(
        _conv3x3,
        x,
        weight,
        bias,
        norm_weight,
        norm_bias,
        num_groups,
        eps,
        residual,
        panels,
        last,
    )


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether our kernel is the one to run on x and a weight of these kinds."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and min(weight.shape[:2]) >= MIN_CHANNELS
    )


def pack(weight: Tensor) -> Tensor:
    """Return the panels of a float32 weight [Co, C, 3, 3], for `packed_conv3x3`."""
    return _pack(weight)


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    num_groups: int = 32,
    eps: float = 1e-6,
    residual: Tensor | None = None,
) -> Tensor:
    """`conv3x3` in float64, one picture at a time; the dtype of x."""
    pictures = []
    for i, picture in enumerate(x.double().split(1)):
        if norm_weight is not None and norm_bias is not None:
            picture = norms.reference(
                picture,
                norm_weight.double(),
                norm_bias.double(),
                num_groups=num_groups,
                eps=eps,
            )
        wide_bias = None if bias is None else bias.double()
        y = F.conv2d(picture, weight.double(), wide_bias, padding=1)
        if residual is not None:
            y = y + residual[i : i + 1].double()
        pictures.append(y.to(x.dtype))
    if not pictures:
        return _empty(x, weight, _layout.memory_format(x))
    return torch.cat(pictures).contiguous(memory_format=_layout.memory_format(x))


def composed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    num_groups: int,
    eps: float,
    residual: Tensor | None,
    panels: Tensor | None,
    channels_last: bool,
) -> Tensor:
    """Return the same, step by step."""
    if norm_weight is not None and norm_bias is not None:
        x = norms.group_norm_silu(
            x, norm_weight, norm_bias, num_groups=num_groups, eps=eps
        )
    y = F.conv2d(x, weight, bias, padding=1)
    if residual is not None:
        y = y + residual
    return y.contiguous(memory_format=_format(channels_last))


def _check_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
) -> None:
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(
            "conv3x3: x must be [B, C, H, W] with C, H and W at least 1, "
            f"got {list(x.shape)}"
        )
    channels = x.shape[1]
    if weight.dim() != 4 or weight.shape[1:] != (channels, 3, 3) or not weight.shape[0]:
        raise ValueError(
            f"conv3x3: weight must be [Co, {channels}, 3, 3] with Co at least 1, "
            f"got {list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"conv3x3: bias must be [{weight.shape[0]}] as weight has outputs, "
            f"got {list(bias.shape)}"
        )
    size = (x.shape[0], weight.shape[0], *x.shape[2:])
    if residual is not None and residual.shape != size:
        raise ValueError(
            f"conv3x3: residual must be {list(size)}, the shape of the result, "
            f"got {list(residual.shape)}"
        )


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _empty(x: Tensor, weight: Tensor, form: torch.memory_format) -> Tensor:
    size = (x.shape[0], weight.shape[0], *x.shape[2:])
    return x.new_empty(size).contiguous(memory_format=form)


def _fake(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return _empty(x, weight, _format(rest[-1]))


def _fallback_pack(weight: Tensor) -> Tensor:
    """[blocks, 16, C, 32], see csrc/ops/conv/conv3x3_cpu.cpp; flat."""
    half = weight.new_tensor(0.5, dtype=torch.float64)
    taps = weight.double()

    def filtered(t: Tensor) -> Tensor:
        a, b, c = t.unbind(-1)
        return torch.stack([a, half * (a + b + c), half * (a - b + c), c], dim=-1)

    both = filtered(filtered(taps).transpose(-1, -2)).transpose(-1, -2)
    outputs = -(-weight.shape[0] // 32) * 32
    both = F.pad(both.flatten(2), (0, 0, 0, 0, 0, outputs - weight.shape[0]))
    blocks = both.unflatten(0, (-1, 32)).permute(0, 3, 2, 1)
    return blocks.to(weight.dtype).flatten()


def _fake_pack(weight: Tensor) -> Tensor:
    outputs = (weight.shape[0] + 31) // 32 * 32
    return weight.new_empty((outputs * 16 * weight.shape[1],))


_conv3x3 = _library.define(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight,"
    " Tensor? norm_bias, SymInt num_groups, float eps, Tensor? residual,"
    " Tensor? panels, bool channels_last) -> Tensor",
    fallback=composed,
    fake=_fake,
    has_kernels=False,
)

_pack = _library.define(
    "conv3x3_pack(Tensor weight) -> Tensor",
    fallback=_fallback_pack,
    fake=_fake_pack,
    has_kernels=False,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, norm_weight, norm_bias, ctx.num_groups, ctx.eps = inputs[:7]
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight, norm_weight, norm_bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Torch's own; the activated map is made again, not kept."""
    x, weight, norm_weight, norm_bias = ctx.saved_tensors
    needs = ctx.needs_input_grad
    normed = norm_weight is not None
    into_x = needs[0] or (normed and (needs[3] or needs[4]))
    options = {"num_groups": ctx.num_groups, "eps": ctx.eps}
    active = x
    if normed and needs[1]:
        active = norms.group_norm_silu(x, norm_weight, norm_bias, **options)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        active,
        weight,
        None,
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        1,
        [into_x, needs[1], False],
    )
    grad_norm_weight = grad_norm_bias = None
    if normed and into_x:
        grad_x, grad_norm_weight, grad_norm_bias = norms.gradients(
            x, norm_weight, norm_bias, ctx.num_groups, ctx.eps, grad_x
        )
    grad_bias = grad.sum(dim=(0, 2, 3)) if ctx.has_bias and needs[2] else None
    return (
        grad_x,
        grad_weight,
        grad_bias,
        grad_norm_weight,
        grad_norm_bias,
        None,
        None,
        grad if needs[7] else None,
        None,
        None,
    )


_library.autograd(_conv3x3, _backward, _setup)
