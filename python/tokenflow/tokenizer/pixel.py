"""Pixels to a small latent map and back: the convolutional half of the tokenizer.

The encoder halves the picture between levels, the decoder doubles it. A level is
a few residual blocks at one width; the level with the fewest positions, and the
middle between encoder and decoder, also let every position look at every other.
Levels are stored in the order in which they run, so the decoder's first level is
its smallest. The two costly steps of a decoder, GroupNorm + SiLU and nearest ×2 +
convolution, are ops of `tokenflow_ext`.
Source: VQGAN, arXiv:2012.09841, as trained in TokenFlow, arXiv:2412.03069.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow_ext.nn import Conv3x3, GroupNormSiLU, UpsampleConv

GROUPS = 32  # of every GroupNorm, as published
EPS = 1e-6


class ResidualBlock(nn.Module):
    """Two normalised 3×3 convolutions beside a shortcut.

    The shortcut is a 1×1 convolution where the widths differ, else the input.
    """

    def __init__(
        self, in_channels: int, out_channels: int, groups: int = GROUPS
    ) -> None:
        super().__init__()
        self.norm1 = GroupNormSiLU(in_channels, num_groups=groups, eps=EPS)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.norm2 = GroupNormSiLU(out_channels, num_groups=groups, eps=EPS)
        self.conv2 = Conv3x3(out_channels)
        self.nin_shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] → [B, out, h, w]."""
        y = self.conv1(x, self.norm1)
        return self.conv2(y, self.norm2, self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """One attention head over all positions, added to the input.

    The norm in front has no SiLU. Scores are scaled by c^-0.5.
    """

    def __init__(self, channels: int, groups: int = GROUPS) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, c, h, w] → the same shape."""
        normed = self.norm(x)
        q, k, v = (
            conv(normed).flatten(2).transpose(1, 2)[:, None]  # [B, 1, h·w, c]
            for conv in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        y = y[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(y)


class Downsample(nn.Conv2d):
    """Halve: 3×3 convolution of stride 2, zeros added on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, c, h, w] → [B, c, ⌊h/2⌋, ⌊w/2⌋]."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """Residual blocks at one width, attention after each if asked, then `resize`.

    `resize` is Downsample, UpsampleConv, or nn.Identity for the last level.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        *,
        attention: bool,
        resize: nn.Module,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.res = nn.ModuleList(
            ResidualBlock(source, target, groups)
            for source, target in zip(widths, widths[1:], strict=False)
        )
        self.attn = nn.ModuleList(
            AttentionBlock(out_channels, groups) if attention else nn.Identity()
            for _ in range(blocks)
        )
        self.resize = resize

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] → [B, out, h', w'], as `resize` makes them."""
        for residual, attention in zip(self.res, self.attn, strict=True):
            x = attention(residual(x))
        return self.resize(x)


def _middle(channels: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(channels, channels, groups),
        AttentionBlock(channels, groups),
        ResidualBlock(channels, channels, groups),
    )


def _layout_of(x: Tensor) -> torch.memory_format:
    """channels_last where x is that and not contiguous as well."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return (
        torch.channels_last
        if last and not x.is_contiguous()
        else torch.contiguous_format
    )


def _fast_layout(x: Tensor) -> Tensor:
    """The layout that convolutions on a CPU are fastest in; elsewhere as it came."""
    if x.device.type != "cpu":
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _check_plan(
    owner: str, width: int, multipliers: Sequence[int], blocks: int, groups: int
) -> None:
    if not multipliers or any(m < 1 for m in multipliers):
        raise ValueError(
            f"{owner}: multipliers must be one or more numbers ≥ 1, "
            f"got {tuple(multipliers)}"
        )
    if groups < 1:
        raise ValueError(f"{owner}: groups must be ≥ 1, got {groups}")
    if any(width * m % groups for m in multipliers):
        raise ValueError(
            f"{owner}: width · multiplier must be a multiple of {groups}, "
            f"got width {width} with multipliers {tuple(multipliers)}"
        )
    if blocks < 1:
        raise ValueError(f"{owner}: blocks must be ≥ 1, got {blocks}")


class PixelEncoder(nn.Module):
    """Picture → latent map.

    f = 2^(number of levels − 1) is `factor`; H and W must be multiples of it.
    The picture is in [-1, 1], any float dtype the parameters have.
    Source: arXiv:2412.03069, pixel encoder.

    Args:
        width: Channels of the first convolution; a multiple of `groups`.
        multipliers: Width of each level, in units of `width`, large maps first.
        blocks: Residual blocks per level.
        latent: Channels of the result.
        in_channels: Channels of the picture.
        groups: Of every norm. A group of a single channel forgets that channel's
            mean, and with it colour: leave at least two channels in each.

    Raises:
        ValueError: Widths or counts cannot be built (here), or the picture does
            not fit (in `forward`).
    """

    def __init__(
        self,
        width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        latent: int = 256,
        in_channels: int = 3,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        _check_plan("PixelEncoder", width, multipliers, blocks, groups)
        self.factor = 2 ** (len(multipliers) - 1)
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        widths = [width] + [width * m for m in multipliers]
        levels = []
        for i, (source, target) in enumerate(zip(widths, widths[1:], strict=False), 1):
            last = i == len(multipliers)
            resize = nn.Identity() if last else Downsample(target)
            levels.append(
                Level(
                    source,
                    target,
                    blocks,
                    attention=last,
                    resize=resize,
                    groups=groups,
                )
            )
        self.conv_blocks = nn.ModuleList(levels)
        self.mid = _middle(widths[-1], groups)
        self.norm_out = GroupNormSiLU(widths[-1], num_groups=groups, eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], latent, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, latent, H/f, W/f]."""
        channels = self.conv_in.in_channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(
                f"PixelEncoder: images must be [B, {channels}, H, W], "
                f"got {list(images.shape)}"
            )
        height, width = images.shape[2:]
        if height % self.factor or width % self.factor or not height * width:
            raise ValueError(
                f"PixelEncoder: height and width must be positive multiples of "
                f"{self.factor}, got {height}×{width}"
            )
        x = self.conv_in(_fast_layout(images))
        for level in self.conv_blocks:
            x = level(x)
        x = self.conv_out(self.norm_out(self.mid(x)))
        return x.contiguous(memory_format=_layout_of(images))


class PixelDecoder(nn.Module):
    """Latent map → picture.

    Mirrors `PixelEncoder`; f = 2^(number of levels − 1) is `factor`. Each level
    has one residual block more than the encoder's. The picture is about [-1, 1]
    and not clamped.
    Source: arXiv:2412.03069, pixel decoder; "enhanced" is width 256, blocks 4.

    Args:
        width: Channels before the last convolution, at multiplier 1.
        multipliers: As given to the encoder: large maps first.
        blocks: As given to the encoder; a level here has blocks + 1.
        latent: Channels of the latent map.
        out_channels: Channels of the picture.
        groups: Of every norm, see `PixelEncoder`.

    Raises:
        ValueError: Widths or counts cannot be built (here), or the map does not
            fit (in `forward`).
    """

    def __init__(
        self,
        width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        latent: int = 256,
        out_channels: int = 3,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        _check_plan("PixelDecoder", width, multipliers, blocks, groups)
        self.factor = 2 ** (len(multipliers) - 1)
        widths = [width * m for m in reversed(multipliers)]
        self.conv_in = nn.Conv2d(latent, widths[0], 3, padding=1)
        self.mid = _middle(widths[0], groups)
        levels = []
        for i, target in enumerate(widths):
            source = widths[max(i - 1, 0)]
            last = i == len(widths) - 1
            resize = nn.Identity() if last else UpsampleConv(target)
            levels.append(
                Level(
                    source,
                    target,
                    blocks + 1,
                    attention=i == 0,
                    resize=resize,
                    groups=groups,
                )
            )
        self.conv_blocks = nn.ModuleList(levels)
        self.norm_out = GroupNormSiLU(widths[-1], num_groups=groups, eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """[B, latent, h, w] → [B, out_channels, f·h, f·w]."""
        channels = self.conv_in.in_channels
        if latent.ndim != 4 or latent.shape[1] != channels:
            raise ValueError(
                f"PixelDecoder: latent must be [B, {channels}, h, w], "
                f"got {list(latent.shape)}"
            )
        x = self.mid(self.conv_in(_fast_layout(latent)))
        for level in self.conv_blocks:
            x = level(x)
        x = self.conv_out(self.norm_out(x))
        return x.contiguous(memory_format=_layout_of(latent))
