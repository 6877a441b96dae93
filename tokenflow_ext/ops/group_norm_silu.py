"""GroupNorm and SiLU in two reads and one write.

The channels of a picture fall into groups; each group is shifted to mean 0, scaled to
variance 1, then each channel is scaled and shifted by its own weight and bias, and
silu(v) = v / (1 + e⁻ᵛ) follows at once, so the normalised map is never stored.
Sources: Group Normalization, arXiv:1803.08494; SiLU, arXiv:1702.03118.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _library
from . import _checks, _layout


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    num_groups: int = 32,
    eps: float = 1e-6,
    out: Tensor | None = None,
) -> Tensor:
    """Return silu(group_norm(x)).

    Mean and (biased) variance are those of each picture's group of C / num_groups
    channels. All arithmetic is float32 or wider inside and the result has the dtype of
    x, under autocast too: nothing is cast there.

    Args:
        x: [B, C, ...], float32, bfloat16 or float16; float64 takes the reference. C
            and the other sizes at least 1, any strides.
        weight: [C], any of these dtypes, device of x.
        bias: [C], likewise.
        num_groups: Divides C.
        eps: Added to the variance, at least 0.
        out: Shape, dtype and device of x; x itself, or sharing no memory with the
            arguments; filled and returned. Not differentiable.

    Returns:
        Shape and dtype of x, channels_last where x is. Differentiable once in x,
        weight and bias.

    Raises:
        TypeError: A dtype is unsupported, or that of `out` is not that of x.
        ValueError: A shape or device disagrees, num_groups does not divide C, eps is
            negative.
        RuntimeError: `out` is given and a gradient is asked for.
    """
    _checks.floating("group_norm_silu", x=x, weight=weight, bias=bias, out=out)
    check_arguments("group_norm_silu", x, num_groups, eps, weight=weight, bias=bias)
    _checks.same_device("group_norm_silu", x=x, weight=weight, bias=bias, out=out)
    wide = torch.float64 in (x.dtype, weight.dtype, bias.dtype)
    if out is not None:
        _checks.same_dtype("group_norm_silu", x=x, out=out)
        _checks.out("group_norm_silu", out, x.shape, x=x, weight=weight, bias=bias)
        if wide:
            return out.copy_(reference(x, weight, bias, num_groups=num_groups, eps=eps))
        _group_norm_silu_out(x, weight, bias, num_groups, eps, out=out)
        return out
    if wide:
        return reference(x, weight, bias, num_groups=num_groups, eps=eps)
    return _library.call(_group_norm_silu, x, weight, bias, num_groups, eps)


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, *, num_groups: int = 32, eps: float = 1e-6
) -> Tensor:
    """`group_norm_silu` in float64, one picture at a time; the dtype of x."""
    pictures = []
    for picture in x:
        groups = picture.double().reshape(num_groups, -1)
        mean = groups.mean(dim=1, keepdim=True)
        variance = (groups - mean).square().mean(dim=1, keepdim=True)
        normed = ((groups - mean) / (variance + eps).sqrt()).reshape(len(picture), -1)
        v = normed * weight.double()[:, None] + bias.double()[:, None]
        pictures.append((v * v.sigmoid()).reshape(picture.shape).to(x.dtype))
    if not pictures:
        return torch.empty_like(x)
    return torch.stack(pictures).contiguous(memory_format=_layout.memory_format(x))


def check_arguments(
    op: str, x: Tensor, num_groups: int, eps: float, **weights: Tensor
) -> None:
    """A map that can be normed, and weight and bias for each of its channels."""
    if x.dim() < 2 or 0 in x.shape[1:]:
        raise ValueError(
            f"{op}: x must be [B, C, ...] with every size after B at least 1, "
            f"got {list(x.shape)}"
        )
    channels = x.shape[1]
    for name, tensor in weights.items():
        if tensor.shape != (channels,):
            raise ValueError(
                f"{op}: {name} must be [{channels}] as x has channels, "
                f"got {list(tensor.shape)}"
            )
    if num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"{op}: num_groups must divide the {channels} channels of x, "
            f"got {num_groups}"
        )
    if not 0 <= eps < float("inf"):
        raise ValueError(f"{op}: eps must be finite and at least 0, got {eps}")


def _fallback(
    x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float
) -> Tensor:
    y = torch.group_norm(x.float(), num_groups, weight.float(), bias.float(), eps)
    y = F.silu(y, inplace=True).to(x.dtype)
    return y.contiguous(memory_format=_layout.memory_format(x))


def _fallback_out(
    x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, *, out: Tensor
) -> None:
    out.copy_(_fallback(x, weight, bias, num_groups, eps))


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float
) -> Tensor:
    return torch.empty_like(x, memory_format=_layout.memory_format(x))


def _fake_out(
    x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, *, out: Tensor
) -> None:
    return None


_group_norm_silu = _library.define(
    "group_norm_silu(Tensor x, Tensor weight, Tensor bias, SymInt num_groups,"
    " float eps) -> Tensor",
    fallback=_fallback,
    fake=_fake,
)

_group_norm_silu_out = _library.define(
    "group_norm_silu_out(Tensor x, Tensor weight, Tensor bias, SymInt num_groups,"
    " float eps, *, Tensor(a!) out) -> ()",
    fallback=_fallback_out,
    fake=_fake_out,
)


def _backward_fallback(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels = x.shape[:2]
    wide = x.float().contiguous()
    sizes = (batch, channels, wide[:1, :1].numel(), num_groups)
    aten = torch.ops.aten
    normed, mean, rstd = aten.native_group_norm(
        wide, weight.float(), bias.float(), *sizes, eps
    )
    grad = aten.silu_backward(grad.float().contiguous(), normed)
    x_grad, weight_grad, bias_grad = aten.native_group_norm_backward(
        grad, wide, mean, rstd, weight.float(), *sizes, [True, True, True]
    )
    layout = _layout.memory_format(x)
    return x_grad.to(x.dtype).contiguous(memory_format=layout), weight_grad, bias_grad


def _backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=_layout.memory_format(x)),
        weight.new_empty(weight.shape, dtype=torch.float32),
        bias.new_empty(bias.shape, dtype=torch.float32),
    )


_group_norm_silu_backward = _library.define(
    "group_norm_silu_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias,"
    " SymInt num_groups, float eps) -> (Tensor, Tensor, Tensor)",
    fallback=_backward_fallback,
    fake=_backward_fake,
    has_kernels=False,
)


_library.no_second_gradient(_group_norm_silu_backward, "group_norm_silu", "float64")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.num_groups, ctx.eps = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    found = gradients(x, weight, bias, ctx.num_groups, ctx.eps, grad)
    return (*found, None, None)


def gradients(
    x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, in their dtypes, from that of the result.

    All arithmetic is float32 or wider; the normalised map is made again, not kept.
    """
    grad = grad.to(x.dtype).contiguous(memory_format=_layout.memory_format(x))
    found = _library.call(
        _group_norm_silu_backward, grad, x, weight, bias, num_groups, eps
    )
    return found[0], found[1].to(weight.dtype), found[2].to(bias.dtype)


_library.autograd(_group_norm_silu, _backward, _setup)
