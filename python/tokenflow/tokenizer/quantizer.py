"""The tokenizer's quantizer: the residual pyramid of `tokenflow_ext`, always float32.

Tokens must not change with the dtype that the networks run in, so the two books keep
their float32 values through `.half()`, `.to(torch.bfloat16)` and autocast; features
of any dtype are read as float32.
Source: TokenFlow, arXiv:2412.03069, section 3.
"""

import hashlib
import json
import random
from collections.abc import Callable

import torch
from torch import Tensor

from tokenflow.config import TokenFlowConfig
from tokenflow.tokenizer.scales import Scales, as_pairs, drop_one
from tokenflow_ext.nn import PyramidQuantizer, QuantizerOutput


class Quantizer(PyramidQuantizer):
    """The pyramid as a config describes it; see `tokenflow_ext.nn.PyramidQuantizer`.

    Args:
        config: Its books, their comparison, the losses' weights and the schedule.
    """

    def __init__(self, config: TokenFlowConfig) -> None:
        super().__init__(
            config.codebook_size,
            config.semantic_dim,
            config.pixel_dim,
            scales=as_pairs(config.scales),
            pixel_weight=config.pixel_weight,
            normalize=config.normalize,
            beta=config.commitment_weight,
            entropy_ratio=config.entropy_weight,
            estimator=config.estimator,
        )
        self.scale_drop = config.scale_drop

    def quantize(
        self, features: Tensor, scales: Scales | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (indices, quantized) of features in any floating dtype."""
        return super().quantize(features.float(), scales)

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
