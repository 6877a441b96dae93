"""Our networks, rebuilt of torch's own modules as other people's decoders are.

`fuse_decoder` knows the blocks by their structure, so the same model is the eager peer
and, fused, one of ours.
"""

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow.tokenizer.pixel import ResidualBlock
from tokenflow_ext.nn import GroupNormSiLU, UpsampleConv


class Upsample(nn.Module):
    """Nearest ×2, then a 3×3 convolution."""

    def __init__(self, source: UpsampleConv) -> None:
        super().__init__()
        self.conv = nn.Conv2d(source.in_channels, source.out_channels, 3, padding=1)
        self.conv.weight, self.conv.bias = source.weight, source.bias

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Block(nn.Module):
    """Twice norm, SiLU, convolution, beside a shortcut."""

    def __init__(self, source: ResidualBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(source.norm1), _norm(source.norm2)
        self.conv1, self.conv2 = source.conv1, source.conv2
        plain = isinstance(source.nin_shortcut, nn.Identity)
        self.nin_shortcut = None if plain else source.nin_shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] → [B, out, H, W]."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


def _norm(source: GroupNormSiLU) -> nn.GroupNorm:
    norm = nn.GroupNorm(source.num_groups, source.num_channels, eps=source.eps)
    norm.weight, norm.bias = source.weight, source.bias
    return norm


def plain(model: Any) -> Any:
    """Return a copy of `model` with torch's modules in place of ours."""
    return _replace(copy.deepcopy(model))


def _replace(model: Any) -> Any:
    for name, child in list(model.named_children()):
        if isinstance(child, ResidualBlock):
            setattr(model, name, Block(child))
        elif isinstance(child, UpsampleConv):
            setattr(model, name, Upsample(child))
        elif isinstance(child, GroupNormSiLU):
            setattr(model, name, nn.Sequential(_norm(child), nn.SiLU()))
        else:
            _replace(child)
    return model
