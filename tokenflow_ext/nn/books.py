"""Two books with one numbering: kept ready to be searched, and one step of training.

What `DualCodebook` and `PyramidQuantizer` share.
Source: TokenFlow, arXiv:2412.03069, section 3; straight-through, arXiv:1711.00937;
rotation, arXiv:2410.06424.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import _checks
from ..ops._numerics import readable
from ..ops.code_histogram import code_histogram
from ..ops.lookup import lookup
from ..ops.prepare import Prepared
from .entropy import entropy_loss
from .kept import KeptBooks
from .rotation import rotate

ESTIMATORS = ("straight_through", "rotation")


@dataclass(frozen=True)
class QuantizerOutput:
    """What the forward of `DualCodebook` and `PyramidQuantizer` returns.

    Each loss is held once per scale (one scale for `DualCodebook`); the names without
    the plural are the means over the scales, ready to be added to a training loss.
    """

    indices: Tensor  # int64; [B, L] from the pyramid, else the shape of the vectors
    quantized: Tensor  # as the features; the exact values, the estimator's gradient
    vq_losses: Tensor  # [scales]; moves entries to features
    commitment_losses: Tensor  # [scales]; moves features to entries, times beta
    entropy_losses: Tensor  # [scales]; times entropy_ratio, 0 where that is 0
    usages: Tensor  # [scales]; share of the entries among the latest indices

    @property
    def vq_loss(self) -> Tensor:
        """Mean over the scales."""
        return self.vq_losses.mean()

    @property
    def commitment_loss(self) -> Tensor:
        """Mean over the scales."""
        return self.commitment_losses.mean()

    @property
    def entropy_loss(self) -> Tensor:
        """Mean over the scales."""
        return self.entropy_losses.mean()

    @property
    def usage(self) -> Tensor:
        """Mean over the scales."""
        return self.usages.mean()


# Whoever looks for tensors in a result (FSDP, export, checkpointing) finds these.
torch.export.register_dataclass(
    QuantizerOutput, serialized_type_name="tokenflow_ext.nn.QuantizerOutput"
)


class Observed(NamedTuple):
    """What one forward of `PyramidQuantizer` shows to its observer, all detached."""

    features: Tensor  # [B, Ds + Dp, h, w], as they came
    rows: Tensor  # [B, L, Ds + Dp], what each token was compared by
    indices: Tensor  # [B, L] int64
    scales: tuple[tuple[int, int], ...]  # those used


class SharedBooks(nn.Module):
    """The two books, kept ready to be searched, and how one scale of them is trained.

    In evaluation the prepared books are kept from one call to the next, and made again
    when a book was changed in place (optimizer steps and loading included), replaced or
    moved, and by `train()` and `eval()`. In training every call makes them anew. Edits
    through `.data` and by replayed CUDA graphs cannot be seen; call `eval()` then.

    Args:
        num_codes: K, entries in either book.
        semantic_width: Ds.
        pixel_width: Dp.
        pixel_weight: Weight of the pixel distance, at least 0.
        normalize: Compare and look up rows of unit length.
        beta: Weight of the commitment loss.
        entropy_ratio: Weight of the entropy loss; 0 leaves it out.
        entropy_temperature: Of the soft assignment in the entropy loss.
        estimator: How the gradient of an entry reaches the row it was found for:
            "straight_through" as it is, "rotation" turned with either half, see
            `tokenflow_ext.nn.rotation`. No value depends on it.
        usage_window: How many of the latest indices `usage` looks at. They are a
            buffer outside the state dict, made by the first forward and, like the
            published one, full of zeros then; a resumed run fills it anew.

    Raises:
        ValueError: A size is below 1, a weight is negative or not finite, or the
            estimator is unknown.

    Attributes:
        observer: Where set, every forward of `PyramidQuantizer` calls it with an
            `Observed`. It is no part of the state dict, but copies of the module
            take it along.
    """

    observer: Callable[[Observed], object] | None = None

    def __init__(
        self,
        num_codes: int,
        semantic_width: int = 32,
        pixel_width: int = 8,
        *,
        pixel_weight: float = 1.0,
        normalize: bool = True,
        beta: float = 0.25,
        entropy_ratio: float = 0.0,
        entropy_temperature: float = 0.01,
        estimator: str = "straight_through",
        usage_window: int = 131072,
    ) -> None:
        super().__init__()
        self._check_arguments(
            sizes={
                "num_codes": num_codes,
                "semantic_width": semantic_width,
                "pixel_width": pixel_width,
                "usage_window": usage_window,
            },
            weights={
                "pixel_weight": pixel_weight,
                "beta": beta,
                "entropy_ratio": entropy_ratio,
            },
        )
        if not entropy_temperature > 0:
            raise ValueError(
                f"{type(self).__name__}: entropy_temperature must be above 0, "
                f"got {entropy_temperature}"
            )
        if estimator not in ESTIMATORS:
            raise ValueError(
                f"{type(self).__name__}: estimator must be one of {list(ESTIMATORS)}, "
                f"got {estimator!r}"
            )
        self.num_codes = num_codes
        self.semantic_width = semantic_width
        self.pixel_width = pixel_width
        self.pixel_weight = pixel_weight
        self.normalize = normalize
        self.beta = beta
        self.entropy_ratio = entropy_ratio
        self.entropy_temperature = entropy_temperature
        self.estimator = estimator
        self.usage_window = usage_window
        self.semantic_book = nn.Parameter(torch.empty(num_codes, semantic_width))
        self.pixel_book = nn.Parameter(torch.empty(num_codes, pixel_width))
        self.register_buffer("latest", None, persistent=False)
        self.latest: Tensor | None
        self._kept = KeptBooks()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both books uniformly from ±1/K and scale their rows to unit length."""
        with torch.no_grad():
            for book in self.books():
                book.uniform_(-1 / self.num_codes, 1 / self.num_codes)
                book.copy_(F.normalize(book, dim=1))

    def books(self) -> tuple[Tensor, Tensor]:
        """Return the books as stored: [K, Ds] and [K, Dp]."""
        return self.semantic_book, self.pixel_book

    def entries(self, indices: Tensor) -> Tensor:
        """Return the entries that `indices` name: [...] → [..., Ds + Dp].

        Differentiable in the books; see `tokenflow_ext.lookup`.
        """
        return lookup(indices, *self.books(), normalize=self.normalize)

    def prepared(self) -> Prepared | None:
        """Return the books ready for the ops; None for float64, which needs no such.

        In evaluation the same handle is returned until a book changes.
        """
        return self._kept.get(
            *self.books(), normalize=self.normalize, keep=not self.training
        )

    def train(self, mode: bool = True) -> SharedBooks:
        """Set the mode and drop the prepared books."""
        self._kept.drop()
        return super().train(mode)

    def extra_repr(self) -> str:
        """Sizes and settings."""
        return (
            f"{self.num_codes}, {self.semantic_width}, {self.pixel_width}, "
            f"pixel_weight={self.pixel_weight}, normalize={self.normalize}, "
            f"beta={self.beta}, entropy_ratio={self.entropy_ratio}, "
            f"estimator={self.estimator}"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> SharedBooks:
        self._kept.drop()
        return super()._apply(fn, recurse)

    def _check_arguments(
        self, sizes: dict[str, int], weights: dict[str, float]
    ) -> None:
        name = type(self).__name__
        for argument, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: {argument} must be at least 1, got {size}")
        for argument, weight in weights.items():
            _checks.weight(name, argument, weight)

    # one scale of training

    def _comparable(self, rows: Tensor) -> Tensor:
        """Both halves scaled to unit length, with gradient. [..., D] → [..., D]."""
        if not self.normalize:
            return rows
        halves = self._halves(rows)
        return torch.cat([F.normalize(half, dim=-1, eps=1e-12) for half in halves], -1)

    def _path(self, rows: Tensor, entries: Tensor) -> Tensor:
        """Return what the gradient of the entries takes to the rows: [..., D] both."""
        if self.estimator == "straight_through":
            return rows
        halves = zip(self._halves(rows), self._halves(entries), strict=True)
        return torch.cat([rotate(*half) for half in halves], dim=-1)

    def _halves(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split([self.semantic_width, self.pixel_width], dim=-1)

    def _losses(self, rows: Tensor, entries: Tensor, indices: Tensor) -> list[Tensor]:
        """Return vq, commitment, entropy and usage of one scale.

        Args:
            rows: [..., D], comparable, with gradient to the features.
            entries: [..., D], their entries, with gradient to the books.
            indices: [...] int64.
        """
        return [
            (entries - rows.detach()).square().mean(),
            self.beta * (entries.detach() - rows).square().mean(),
            self._entropy(rows),
            self._usage(indices).to(rows.dtype),
        ]

    def _entropy(self, rows: Tensor) -> Tensor:
        if self.entropy_ratio == 0:
            return rows.new_zeros(())
        books = torch.cat([readable(book) for book in self.books()], dim=1)
        root = torch.ones(books.shape[1], dtype=rows.dtype, device=rows.device)
        root[self.semantic_width :] = self.pixel_weight**0.5  # |√w·x|² = w·|x|²
        return self.entropy_ratio * entropy_loss(
            root * rows.flatten(0, -2),
            root * self._comparable(books),
            self.entropy_temperature,
        )

    @torch.no_grad()
    def _usage(self, indices: Tensor) -> Tensor:
        if self.latest is None or self.latest.device != indices.device:
            with torch.inference_mode(False):  # training writes into it later
                self.latest = torch.zeros(
                    self.usage_window, dtype=torch.int32, device=indices.device
                )
        if self.training:
            both = torch.cat([self.latest, indices.flatten().int()])
            self.latest.copy_(both[-self.usage_window :])
        counts = code_histogram(self.latest, self.num_codes)
        return (counts > 0).sum() / self.num_codes
