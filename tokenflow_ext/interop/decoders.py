"""Decoders of the VQGAN family: transformers, diffusers, taming, LlamaGen, VAR.

Two pairs are replaced: enlargement to twice the size with the 3×3 convolution behind
it, and GroupNorm with the SiLU behind it. The parameters are the modules' own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..nn.decoder import conv_of
from ..ops import _layout
from ..ops.conv3x3 import takes
from ..ops.group_norm_silu import group_norm_silu
from ..ops.upsample_conv import upsample_conv
from ._swap import Family, home, original


def _norm_silu(norm: Any, x: Tensor) -> Tensor:
    return group_norm_silu(
        x, norm.weight, norm.bias, num_groups=norm.num_groups, eps=norm.eps
    )


def _is_norm(module: Any) -> bool:
    return (
        isinstance(module, nn.GroupNorm)
        and type(module).forward is nn.GroupNorm.forward
        and module.weight is not None
    )


def _is_conv(module: Any) -> bool:
    """A 3×3 convolution that keeps the size, and nothing else."""
    return (
        isinstance(module, nn.Conv2d)
        and type(module).forward is nn.Conv2d.forward
        and (module.kernel_size, module.stride, module.padding, module.dilation)
        == ((3, 3), (1, 1), (1, 1), (1, 1))
        and module.groups == 1
        and module.padding_mode == "zeros"
    )


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _picture(channels: int, like: Tensor) -> tuple[Tensor, ...]:
    return (torch.randn(2, channels, 4, 3, generator=_generator()).to(like),)


# enlargement and convolution


def _upsample_forward(self: Any, x: Tensor, *rest: Any, **named: Any) -> Any:
    if any(value is not None for value in (*rest, *named.values())):
        return original(self).forward(self, x, *rest, **named)
    conv = getattr(self, "conv", None) or self.Conv2d_0
    return upsample_conv(x, conv.weight, conv.bias)


def _transformers_upsample(module: Any) -> bool | str:
    names = ("JanusVQVAEConvUpsample", "Emu3VQVAEEncoderConvUpsample")
    return home(module, "transformers", *names) and _is_conv(module.conv)


def _diffusers_upsample(module: Any) -> bool | str:
    if not home(module, "diffusers", "Upsample2D"):
        return False
    if not module.use_conv or module.use_conv_transpose or not module.interpolate:
        return "it has no plain convolution"
    if module.norm is not None:
        return "it has a norm"
    conv = getattr(module, "conv", None) or getattr(module, "Conv2d_0", None)
    return _is_conv(conv) or "its convolution is not 3×3 with padding 1"


def _taming_upsample(module: Any) -> bool | str:
    children = list(module.children())
    return (
        type(module).__name__.startswith("Upsample")
        and len(children) == 1
        and children[0] is getattr(module, "conv", None)
        and _is_conv(module.conv)
    )


def _upsample_trial(module: Any) -> tuple[Tensor, ...]:
    return _picture(module.conv.in_channels, module.conv.weight)


# residual blocks: twice norm, SiLU, convolution


def _block_forward(self: Any, x: Tensor, *rest: Any, **named: Any) -> Any:
    if any(value is not None for value in (*rest, *named.values())):
        return original(self).forward(self, x, *rest, **named)
    hidden = _norm_silu_conv(self.norm1, self.conv1, x, None, torch.channels_last)
    shortcut = getattr(self, "conv_shortcut", None) or getattr(
        self, "nin_shortcut", None
    )
    dropout = getattr(self, "dropout", _same)
    if getattr(dropout, "training", False) and getattr(dropout, "p", 1.0):
        hidden = self.conv2(dropout(_norm_silu(self.norm2, hidden)))
        total = hidden + (x if shortcut is None else shortcut(x))
    else:
        residual = x if shortcut is None else shortcut(x)
        form = _layout.memory_format(x)
        total = _norm_silu_conv(self.norm2, self.conv2, hidden, residual, form)
    scale = getattr(self, "output_scale_factor", 1.0)
    return total if scale == 1.0 else total / scale


def _norm_silu_conv(
    norm: Any, conv: Any, x: Tensor, residual: Tensor | None, form: torch.memory_format
) -> Any:
    """Norm, SiLU, convolution and residual; in one pass where `conv3x3` does that."""
    if _is_conv(conv) and not _is_hooked(conv) and takes(x, conv.weight):
        return conv_of(conv, x, norm, residual, form)
    y = conv(_norm_silu(norm, x))
    return y if residual is None else y + residual


def _is_hooked(module: Any) -> bool:
    """Whether a call of `module` does more than its class's forward."""
    return (
        "forward" in vars(module)
        or bool(module._forward_hooks)
        or bool(module._forward_pre_hooks)
        or bool(module._backward_hooks)
        or bool(module._backward_pre_hooks)
    )


def _same(x: Tensor) -> Tensor:
    return x


def _is_block(module: Any) -> bool:
    return all(
        _is_norm(getattr(module, f"norm{i}", None))
        and isinstance(getattr(module, f"conv{i}", None), nn.Conv2d)
        for i in (1, 2)
    )


def _transformers_block(module: Any) -> bool | str:
    names = (
        "ChameleonVQVAEEncoderResnetBlock",
        "JanusVQVAEResnetBlock",
        "Emu3VQVAEResnetBlock",
    )
    return home(module, "transformers", *names) and _is_block(module)


def _diffusers_block(module: Any) -> bool | str:
    if not home(module, "diffusers", "ResnetBlock2D") or not _is_block(module):
        return False
    if not isinstance(module.nonlinearity, nn.SiLU):
        return f"its activation is {type(module.nonlinearity).__name__}"
    if module.time_emb_proj is not None or module.time_embedding_norm == "scale_shift":
        return "it takes a time embedding"
    if module.upsample is not None or module.downsample is not None:
        return "it changes the size"
    return True


def _taming_block(module: Any) -> bool | str:
    known = {"norm1", "norm2", "conv1", "conv2", "dropout"}
    known |= {"nin_shortcut", "conv_shortcut", "nonlinearity", "activation"}
    return _is_block(module) and {name for name, _ in module.named_children()} <= known


def _block_trial(module: Any) -> tuple[Tensor, ...]:
    return _picture(module.conv1.in_channels, module.conv1.weight)


# the end of a diffusers encoder or decoder: the norm takes the activation over


def _norm_forward(self: Any, x: Tensor) -> Tensor:
    return _norm_silu(self, x)


def _pass_forward(self: Any, x: Tensor) -> Tensor:
    return x


NORM_SILU = Family("last norm", lambda module: False, {"forward": _norm_forward})
PASSED = Family("SiLU, passed", lambda module: False, {"forward": _pass_forward})


def pairs(module: Any) -> list[tuple[nn.Module, Family]]:
    """Children of `module` that run one after the other, and what they become."""
    if home(module, "diffusers", "Encoder", "Decoder"):
        norm, activation = module.conv_norm_out, module.conv_act
        if _is_norm(norm) and type(activation) is nn.SiLU:
            return [(norm, NORM_SILU), (activation, PASSED)]
    return []


FAMILIES = (
    Family(
        "transformers upsampling",
        _transformers_upsample,
        {"forward": _upsample_forward},
    ),
    Family("diffusers upsampling", _diffusers_upsample, {"forward": _upsample_forward}),
    Family(
        "taming upsampling",
        _taming_upsample,
        {"forward": _upsample_forward},
        _upsample_trial,
    ),
    Family("transformers block", _transformers_block, {"forward": _block_forward}),
    Family("diffusers block", _diffusers_block, {"forward": _block_forward}),
    Family("taming block", _taming_block, {"forward": _block_forward}, _block_trial),
)
