"""Numbers gathered batch by batch; where the batches end changes none of them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenflow.evaluation.frechet import Moments, frechet_distance
from tokenflow.evaluation.metrics import entropy_bits, perplexity, usage
from tokenflow.tokenizer.scales import token_counts

Score = Callable[[Tensor, Tensor], Tensor]  # two batches of uint8 pictures -> [B]


class Means:
    """The mean over all pictures of scores that compare two pictures.

    Args:
        scores: By name, what to ask of each pair.
    """

    def __init__(self, scores: dict[str, Score]) -> None:
        self._scores = scores
        self._values: dict[str, list[float]] = {name: [] for name in scores}

    def update(self, images: Tensor, originals: Tensor) -> None:
        """Take in a batch of pictures and what they should be, uint8 [B, 3, H, W]."""
        for name, score in self._scores.items():
            self._values[name] += score(images, originals).tolist()

    def result(self) -> dict[str, float]:
        """Return the means; infinite where a picture's score is."""
        return {
            name: math.fsum(values) / len(values)
            for name, values in self._values.items()
        }


class CodeUse:
    """How often each entry of a codebook is used at each scale.

    Args:
        scales: (height, width) of each scale, coarse to fine.
        size: K, entries of the codebook.
    """

    def __init__(self, scales: tuple[tuple[int, int], ...], size: int) -> None:
        self._scales = scales
        self._counts = torch.zeros(len(scales), size, dtype=torch.int64)

    def update(self, indices: Tensor) -> None:
        """Take in indices [B, L] int64, scale after scale."""
        parts = indices.cpu().split(token_counts(self._scales), dim=1)
        for counts, part in zip(self._counts, parts, strict=True):
            counts += torch.bincount(part.flatten(), minlength=len(counts))

    def overall(self) -> dict[str, float]:
        """Return usage and perplexity of all scales taken together."""
        total = self._counts.sum(dim=0)
        return {"usage": usage(total), "perplexity": perplexity(total)}

    def per_scale(self) -> list[dict[str, Any]]:
        """Return usage, perplexity and entropy of each scale."""
        return [
            {
                "scale": [height, width],
                "tokens": height * width,
                "usage": usage(counts),
                "perplexity": perplexity(counts),
                "entropy_bits": entropy_bits(counts),
            }
            for (height, width), counts in zip(self._scales, self._counts, strict=True)
        ]

    def entropy_bits_per_picture(self) -> float:
        """Return Σ over scales of tokens · entropy."""
        return math.fsum(
            row["tokens"] * row["entropy_bits"] for row in self.per_scale()
        )


class Apart:
    """The Fréchet distance of redrawn pictures from their originals.

    Args:
        extractor: uint8 [B, 3, H, W] -> features [B, D]; has `width`, which is D.
        other_originals: A change made to originals before they are looked at, for a
            second distance; None for none.
    """

    def __init__(
        self,
        extractor: Any,
        other_originals: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._extractor = extractor
        self._change = other_originals
        self._redrawn, self._originals, self._others = (
            Moments(extractor.width) for _ in range(3)
        )

    @torch.no_grad()
    def update(self, images: Tensor, originals: Tensor) -> None:
        """Take in a batch of redrawn pictures and their originals."""
        self._redrawn.update(self._extractor(images))
        self._originals.update(self._extractor(originals))
        if self._change is not None:
            self._others.update(self._extractor(self._change(originals)))

    def result(self) -> float:
        """Return the distance from the originals."""
        return frechet_distance(self._redrawn, self._originals)

    def other_result(self) -> float:
        """Return the distance from the changed originals."""
        return frechet_distance(self._redrawn, self._others)
