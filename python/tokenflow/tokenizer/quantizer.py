"""The tokenizer's quantizer: the residual pyramid of `tokenflow_ext`, always float32.

Tokens must not change with the dtype that the networks run in, so the two books keep
their float32 values through `.half()`, `.to(torch.bfloat16)` and autocast; features
of any dtype are read as float32.

An entry may have one half alone. The ops always compare two, so they get a column of
zeros for the other, which adds 0 to every score; nobody else sees it.
Source: TokenFlow, arXiv:2412.03069, section 3.
"""

import hashlib
import json
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow.config import TokenFlowConfig
from tokenflow.tokenizer.scales import Scales, as_pairs, drop_one
from tokenflow_ext import Prepared, lookup, pyramid_lookup, pyramid_quantize
from tokenflow_ext.nn import PyramidQuantizer, QuantizerOutput


class Quantizer(PyramidQuantizer):
    """The pyramid as a config describes it; see `tokenflow_ext.nn.PyramidQuantizer`.

    Args:
        config: Its books, their comparison, the losses' weights and the schedule.
    """

    def __init__(self, config: TokenFlowConfig) -> None:
        widths = config.semantic_dim, config.pixel_dim
        super().__init__(
            config.codebook_size,
            *(max(1, width) for width in widths),
            scales=as_pairs(config.scales),
            pixel_weight=config.pixel_weight,
            normalize=config.normalize,
            beta=config.commitment_weight,
            entropy_ratio=config.entropy_weight,
            estimator=config.estimator,
        )
        self.scale_drop = config.scale_drop
        self.semantic_width, self.pixel_width = widths
        if not self.semantic_width:
            self.semantic_book = None
        if not self.pixel_width:
            self.pixel_book = None

    def books(self) -> tuple[Tensor, Tensor]:
        """Return the books as stored: [K, Ds] and [K, Dp], of which one may be 0."""
        meaning, look = self.semantic_book, self.pixel_book
        if meaning is None:
            return look.new_empty(len(look), 0), look
        return meaning, meaning.new_empty(len(meaning), 0) if look is None else look

    def _searched(self) -> tuple[Tensor, Tensor]:
        """Return the books as the ops take them."""
        meaning, look = self.books()
        return tuple(b if b.shape[1] else F.pad(b, (0, 1)) for b in (meaning, look))

    def _widened(self, features: Tensor) -> Tensor:
        """Return features [B, Ds + Dp, h, w] as the ops take them."""
        before, after = int(not self.semantic_width), int(not self.pixel_width)
        if not before and not after:
            return features
        return F.pad(features, (0, 0, 0, 0, before, after))

    def _own(self, quantized: Tensor, dim: int) -> Tensor:
        """Return what the ops gave back without their column of zeros."""
        width = self.semantic_width + self.pixel_width
        if quantized.shape[dim] == width:
            return quantized
        return quantized.narrow(dim, int(not self.semantic_width), width)

    def prepared(self) -> Prepared | None:
        """Return the books ready for the ops; see `SharedBooks.prepared`."""
        return self._kept.get(
            *self._searched(), normalize=self.normalize, keep=not self.training
        )

    def entries(self, indices: Tensor) -> Tensor:
        """Return the entries that `indices` name: [...] → [..., Ds + Dp]."""
        found = lookup(indices, *self._searched(), normalize=self.normalize)
        return self._own(found, -1)

    def lookup(
        self,
        indices: Tensor,
        scales: Scales | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the sum of the entries of all scales; see `PyramidQuantizer`."""
        total = pyramid_lookup(
            indices,
            *self._searched(),
            self.scales if scales is None else scales,
            size=size,
            normalize=self.normalize,
        )
        return self._own(total, 1)

    def quantize(
        self, features: Tensor, scales: Scales | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (indices, quantized) of features in any floating dtype."""
        indices, quantized = pyramid_quantize(
            self._widened(features.float()),
            *self._searched(),
            self.scales if scales is None else scales,
            pixel_weight=self.pixel_weight,
            normalize=self.normalize,
            prepared=self.prepared(),
        )
        return indices, self._own(quantized, 1)

    def forward(
        self,
        features: Tensor,
        scales: Scales | None = None,
        rng: random.Random | None = None,
    ) -> QuantizerOutput:
        """Quantize with gradients and losses, in float32 also under autocast.

        In training mode one scale but the first is left out with probability
        `scale_drop`; the grid of the result stays.

        Args:
            features: [B, Ds + Dp, h, w], any floating dtype.
            scales: Another schedule than the config's.
            rng: Draws the scale to leave out; Python's own generator when None.
        """
        pairs = self.scales if scales is None else scales
        draw = rng or random
        if self.training and draw.random() < self.scale_drop:
            pairs = drop_one(pairs, draw)
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float(), pairs)

    def fingerprint(self) -> str:
        """Return 16 hex digits of SHA-256 over both books and their comparison."""
        settings = {
            "codebook_size": self.num_codes,
            "semantic_dim": self.semantic_width,
            "pixel_dim": self.pixel_width,
            "pixel_weight": float(self.pixel_weight),
            "normalize": self.normalize,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for book in self.books():
            digest.update(book.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "Quantizer":
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if not tensor.is_floating_point() or moved.dtype == tensor.dtype:
                return moved
            return tensor.to(moved.device)

        return super()._apply(keep_float32, recurse)
