"""The two costly steps of a VQGAN-like decoder, as modules."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.group_norm_silu import group_norm_silu
from ..ops.upsample_conv import upsample_conv


class UpsampleConv(nn.Conv2d):
    """Nearest ×2, then a 3×3 convolution with padding 1; see `upsample_conv`.

    Parameters, their names and their initial values are those of the convolution.

    Args:
        channels: Of the input.
        out_channels: Of the output; None for as many.
        bias: Whether each output has one.
    """

    def __init__(
        self, channels: int, out_channels: int | None = None, bias: bool = True
    ) -> None:
        super().__init__(
            channels,
            channels if out_channels is None else out_channels,
            3,
            padding=1,
            bias=bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, Co, 2H, 2W]."""
        return upsample_conv(x, self.weight, self.bias)


class GroupNormSiLU(nn.GroupNorm):
    """GroupNorm, then SiLU; see `group_norm_silu`.

    Parameters, their names and their initial values are those of the norm.

    Args:
        channels: Of the input and the output.
        num_groups: Divides `channels`.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, num_groups: int = 32, eps: float = 1e-6) -> None:
        super().__init__(num_groups, channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] → the same shape."""
        return group_norm_silu(
            x, self.weight, self.bias, num_groups=self.num_groups, eps=self.eps
        )
