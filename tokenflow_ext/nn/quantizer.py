"""Two codebooks with one numbering, as modules: one scale, or a pyramid of them.

Values come from the exact ops, so training meets the very tokens that inference will;
gradients come from plain torch beside them. Upstream's rule: `quantized` hands its
gradient straight to the normalised pooled residual of each scale, and through pooling
and enlargement to the features; what is subtracted from the residual is a constant.
With `estimator="rotation"` it is turned on its way to each half of that residual.
The books learn from `vq_loss` and `entropy_loss` alone.
Source: TokenFlow, arXiv:2412.03069, section 3; straight-through, arXiv:1711.00937;
rotation, arXiv:2410.06424.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops._numerics import readable
from ..ops._scales import as_pairs
from ..ops.pyramid import pyramid_lookup, pyramid_quantize
from ..ops.quantize import quantize
from .books import Observed, QuantizerOutput, SharedBooks

Scales = Sequence[int | Sequence[int]]


class DualCodebook(SharedBooks):
    """One shared entry per (semantic, pixel) pair of vectors.

    `quantize` finds indices, `lookup` reads their entries, `forward` does both and adds
    what training needs. Arguments and errors are those of `SharedBooks`.
    """

    def quantize(self, semantic: Tensor, pixel: Tensor) -> Tensor:
        """Return indices: [..., Ds] and [..., Dp] → [...]; `tokenflow_ext.quantize`."""
        return quantize(
            semantic,
            pixel,
            *self.books(),
            pixel_weight=self.pixel_weight,
            normalize=self.normalize,
            prepared=self.prepared(),
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the entries: [...] → [..., Ds + Dp]; `tokenflow_ext.lookup`."""
        return self.entries(indices)

    def forward(self, semantic: Tensor, pixel: Tensor) -> QuantizerOutput:
        """Quantize and look up, with gradients and losses.

        Args:
            semantic: [..., Ds], any floating dtype.
            pixel: [..., Dp], same leading shape.

        Returns:
            `indices` [...] and `quantized` [..., Ds + Dp], exactly what `quantize` and
            `lookup` return; and the losses, see `QuantizerOutput`. Usage counts these
            indices in training mode only.
        """
        indices = self.quantize(semantic, pixel)
        entries = self.entries(indices)
        rows = torch.cat([readable(semantic), readable(pixel)], dim=-1)
        rows = self._comparable(rows)
        losses = [x[None] for x in self._losses(rows, entries, indices)]
        quantized = _with_value(self._path(rows, entries), entries)
        return QuantizerOutput(indices, quantized, *losses)


class PyramidQuantizer(SharedBooks):
    """Features to indices and back, coarse to fine, with one pair of books.

    `quantize` and `lookup` are the exact ops; `forward` returns the same values with
    gradients and losses. Other arguments and errors are those of `SharedBooks`.

    Args:
        num_codes: K, entries in either book.
        semantic_width: Ds.
        pixel_width: Dp.
        scales: The schedule, coarse to fine: side lengths or (height, width) pairs;
            a single scale works.
        **settings: See `SharedBooks`.
    """

    def __init__(
        self,
        num_codes: int,
        semantic_width: int = 32,
        pixel_width: int = 8,
        *,
        scales: Scales,
        **settings: Any,
    ) -> None:
        super().__init__(num_codes, semantic_width, pixel_width, **settings)
        self.scales = tuple(as_pairs(type(self).__name__, scales))

    def quantize(
        self, features: Tensor, scales: Scales | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (indices, quantized): [B, D, h, w] → [B, L] and [B, D, h, w].

        See `tokenflow_ext.pyramid_quantize`. `scales` replaces the module's schedule.
        """
        return pyramid_quantize(
            features,
            *self.books(),
            self.scales if scales is None else scales,
            pixel_weight=self.pixel_weight,
            normalize=self.normalize,
            prepared=self.prepared(),
        )

    def lookup(
        self,
        indices: Tensor,
        scales: Scales | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the sum of the entries of all scales: [B, L] → [B, D, h, w].

        See `tokenflow_ext.pyramid_lookup`: a prefix of whole scales is allowed, and
        `size` is the final grid, that of the last scale when None.
        """
        return pyramid_lookup(
            indices,
            *self.books(),
            self.scales if scales is None else scales,
            size=size,
            normalize=self.normalize,
        )

    def forward(
        self, features: Tensor, scales: Scales | None = None
    ) -> QuantizerOutput:
        """Quantize with gradients and losses.

        Args:
            features: [B, Ds + Dp, h, w], any floating dtype.
            scales: Another schedule than the module's, as when training drops one.

        Returns:
            `indices` [B, L] and `quantized` [B, Ds + Dp, h, w], exactly what `quantize`
            returns; and the losses of each scale used, see `QuantizerOutput`. Usage
            counts these indices in training mode only.
        """
        pairs = as_pairs(type(self).__name__, self.scales if scales is None else scales)
        indices, quantized = self.quantize(features.detach(), pairs)
        grid = (features.shape[-2], features.shape[-1])
        rest = readable(features)
        total = torch.zeros_like(rest)
        losses, seen = [], []
        tokens = [height * width for height, width in pairs]
        parts = indices.split(tokens, dim=1)
        looked_up = self.entries(indices).split(tokens, dim=1)  # one backward for all
        for (height, width), part, entries in zip(pairs, parts, looked_up, strict=True):
            pooled = F.adaptive_avg_pool2d(rest, (height, width))
            rows = self._comparable(pooled.flatten(2).transpose(1, 2))
            losses.append(torch.stack(self._losses(rows, entries, part)))
            if self.observer is not None:
                seen.append(rows.detach())
            path = self._path(rows, entries)
            cells = _with_value(path, entries.detach()).transpose(1, 2)
            enlarged = _enlarge(cells.unflatten(2, (height, width)), grid)
            total = total + enlarged
            rest = rest - enlarged.detach()
        if self.observer is not None:
            rows = torch.cat(seen, dim=1)
            self.observer(Observed(features.detach(), rows, indices, tuple(pairs)))
        return QuantizerOutput(
            indices, _with_value(total, quantized), *torch.stack(losses, dim=1)
        )

    def extra_repr(self) -> str:
        """Sizes and settings."""
        return f"{super().extra_repr()}, scales={list(self.scales)}"


def _enlarge(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    if (cells.shape[-2], cells.shape[-1]) == grid:
        return cells
    return F.interpolate(cells, size=grid, mode="bicubic", align_corners=False)


class _WithValue(torch.autograd.Function):
    """The value of one tensor, the gradient of another."""

    @staticmethod
    def forward(path: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _with_value(path: Tensor, value: Tensor) -> Tensor:
    """Return `value`, whose gradient goes to `path` alone."""
    out: Tensor = _WithValue.apply(path, value.detach())
    return out
