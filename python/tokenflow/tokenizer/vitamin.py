"""ViTamin: convolutions down to a sixteenth, then a transformer without positions.

The stem halves the picture once, two stages of convolutional blocks halve it twice,
a last strided convolution makes the tokens; the transformer's MLPs are gated. Where
things are, the zero borders of the convolutions tell, so there is no table of
positions and any grid is a native one.
Source: ViTamin, arXiv:2404.02132, in timm's arrangement; XL at 256 in TokenFlow-L.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow.tokenizer.transformer import (
    CLIP_MEAN,
    CLIP_STD,
    Attention,
    Block,
    GatedMLP,
    InputScaling,
    check_heads,
    check_images,
    run_blocks,
)

EPS = 1e-6  # of every norm here


class ChannelNorm(nn.LayerNorm):
    """Normalise the channels of every position of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, c, h, w] → the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Stem(nn.Module):
    """Picture → half-size map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm1 = ChannelNorm(width, eps=EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, width, ⌈H/2⌉, ⌈W/2⌉]."""
        return self.conv2(F.gelu(self.norm1(self.conv1(images))))


class HalvedShortcut(nn.Module):
    """Mean of each 3×3 neighbourhood at every second position, widened if needed.

    Positions outside the map do not count.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.expand = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] → [B, out, ⌈h/2⌉, ⌈w/2⌉]."""
        pooled = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return self.expand(pooled)


class ConvBlock(nn.Module):
    """Norm, widen four times, one 3×3 filter per channel, narrow; plus a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        hidden = 4 * out_channels
        self.shortcut = (
            nn.Identity() if stride == 1 else HalvedShortcut(in_channels, out_channels)
        )
        self.pre_norm = ChannelNorm(in_channels, eps=EPS)
        self.conv1_1x1 = nn.Conv2d(in_channels, hidden, 1)
        self.conv2_kxk = nn.Conv2d(
            hidden, hidden, 3, stride=stride, padding=1, groups=hidden
        )
        self.conv3_1x1 = nn.Conv2d(hidden, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] → [B, out, h', w'], halved (rounded up) for stride 2."""
        y = F.gelu(self.conv1_1x1(self.pre_norm(x)))
        y = self.conv3_1x1(F.gelu(self.conv2_kxk(y)))
        return self.shortcut(x) + y


class TokenPool(nn.Module):
    """The last halving: norm, then a strided convolution to the tokens' width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(in_channels, eps=EPS)
        self.proj = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] → [B, out, ⌈h/2⌉, ⌈w/2⌉]."""
        return self.proj(self.norm(x))


class VitaminEncoder(nn.Module):
    """ViTamin's features, one per 16×16 pixels.

    Pictures in [-1, 1] are clamped and scaled by CLIP's mean and std first. The
    published network ends here, without a last norm.
    Source: arXiv:2404.02132.

    Args:
        width: Features per token.
        stem_widths: Channels of the two convolutional stages.
        stem_depths: Blocks of the two convolutional stages, each ≥ 1.
        layers: Transformer layers.
        heads: Attention heads; width must be a multiple.
        mlp_width: Hidden features of each gated MLP; 2 · width if None.

    Raises:
        ValueError: width is no multiple of heads, there are not two stages, or (in
            `forward`) the pictures do not fit.
    """

    def __init__(
        self,
        width: int = 1152,
        stem_widths: Sequence[int] = (192, 384),
        stem_depths: Sequence[int] = (2, 4),
        layers: int = 32,
        heads: int = 16,
        mlp_width: int | None = None,
    ) -> None:
        super().__init__()
        check_heads("VitaminEncoder", width, heads)
        if len(stem_widths) != 2 or len(stem_depths) != 2 or min(stem_depths) < 1:
            raise ValueError(
                "VitaminEncoder: stem_widths and stem_depths must each name two "
                f"stages, depths ≥ 1, got {tuple(stem_widths)} and "
                f"{tuple(stem_depths)}"
            )
        self.width = width
        self.scaling = InputScaling(CLIP_MEAN, CLIP_STD)
        self.stem = Stem(stem_widths[0])
        sources = (stem_widths[0], *stem_widths)
        self.stages = nn.ModuleList(
            nn.Sequential(
                ConvBlock(source, target, stride=2),
                *(ConvBlock(target, target, stride=1) for _ in range(depth - 1)),
            )
            for source, target, depth in zip(
                sources, stem_widths, stem_depths, strict=False
            )
        )
        self.pool = TokenPool(stem_widths[1], width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                Attention(width, heads),
                GatedMLP(width, mlp_width or 2 * width, eps=EPS),
                eps=EPS,
            )
            for _ in range(layers)
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the tokens per column and row of a picture, rounded up."""
        return -(-height // 16), -(-width // 16)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, h·w, width], rows first."""
        check_images("VitaminEncoder", images, 1)
        x = self.stem(self.scaling(images))
        for stage in self.stages:
            x = stage(x)
        return run_blocks(self.blocks, self.pool(x).flatten(2).transpose(1, 2))
