"""The costly steps of a VQGAN-like decoder, as modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.conv3x3 import Norm, packed_conv3x3, takes
from ..ops.group_norm_silu import group_norm_silu
from ..ops.upsample_conv import upsample_conv
from .kept import KeptPanels


class _Parameters(nn.Conv2d):
    """Those of a 3×3 convolution with padding 1; as many outputs if not said."""

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


class UpsampleConv(_Parameters):
    """Nearest ×2, then a 3×3 convolution with padding 1; see `upsample_conv`.

    Parameters, their names and their initial values are those of the convolution.

    Args:
        channels: Of the input.
        out_channels: Of the output; None for as many.
        bias: Whether each output has one.
    """

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


class Conv3x3(_Parameters):
    """A 3×3 convolution with padding 1, and what stands around it; see `conv3x3`.

    Parameters, their names and their initial values are those of the convolution. The
    transformed weights are kept beside them, 16/9 their size, where no gradient of the
    weight is asked for; they are made again when the weight changes.

    Args:
        channels: Of the input.
        out_channels: Of the output; None for as many.
        bias: Whether each output has one.
    """

    def forward(
        self,
        x: Tensor,
        norm: nn.GroupNorm | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """[B, C, H, W] → [B, Co, H, W].

        Args:
            x: The input.
            norm: Whose parameters x is normed with, then activated, in the same pass.
            residual: [B, Co, H, W], added to the result.
        """
        return conv_of(self, x, norm, residual)


def conv_of(
    conv: nn.Conv2d,
    x: Tensor,
    norm: nn.GroupNorm | None,
    residual: Tensor | None,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """`conv3x3` with the parameters of these modules; the conv keeps its panels.

    The result has `memory_format`, by default that of x.
    """
    panels = None
    if takes(x, conv.weight):
        kept = conv.__dict__.setdefault("_tokenflow_panels", KeptPanels())
        panels = kept.get(conv.weight)
    given: Norm = (None, None, 1, 0.0)
    if norm is not None:
        given = norm.weight, norm.bias, norm.num_groups, norm.eps
    return packed_conv3x3(
        panels, x, conv.weight, conv.bias, given, residual, memory_format
    )
