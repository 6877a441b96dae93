"""Fréchet distance between two sets of features, each read once as a stream.

A set is kept as its count, mean and scatter in float64, so fifty thousand pictures
cost no more memory than one. Rows are gathered into blocks of a fixed length and each
block is merged into what came before; where the batches end changes no bit.
Source: Heusel et al. 2017, arXiv:1706.08500; the merging after Chan, Golub and
LeVeque 1979.
"""

import torch
from torch import Tensor

BLOCK = 1024  # rows merged at a time, however they arrive


class Moments:
    """Mean and covariance of the rows seen so far.

    Args:
        width: D, the length of a row.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._merged = _nothing(width)
        self._waiting = torch.empty(0, width, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Take in rows: [B, D] of any float dtype and device, B may be 0.

        Raises:
            ValueError: They are not [B, D], or not all finite.
        """
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(
                f"Moments: features must be [B, {self.width}], "
                f"got {list(features.shape)}"
            )
        rows = features.detach().cpu().double()
        broken = (~rows.isfinite()).any(dim=1).sum().item()
        if broken:
            raise ValueError(
                f"Moments: features must be finite, {broken} of {len(rows)} are not"
            )
        rows = torch.cat([self._waiting, rows])
        whole = len(rows) // BLOCK * BLOCK
        for block in rows[:whole].split(BLOCK):
            self._merged = _merge(self._merged, block)
        self._waiting = rows[whole:].clone()

    @property
    def count(self) -> int:
        """How many rows were taken in."""
        return self._merged[0] + len(self._waiting)

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Return the mean [D] and the sample covariance [D, D], both float64.

        Raises:
            ValueError: There were fewer than two rows.
        """
        self._check_count()
        count, mean, scatter = _merge(self._merged, self._waiting)
        return mean, scatter / (count - 1)

    def mean_and_factor(self) -> tuple[Tensor, Tensor]:
        """Return the mean [D] and F [D, rank] with F Fᵀ = the covariance.

        Raises:
            ValueError: There were fewer than two rows.
        """
        self._check_count()
        if self.count < BLOCK:  # the rows are all there: they are a factor
            mean = self._waiting.mean(dim=0)
            return mean, (self._waiting - mean).T / (self.count - 1) ** 0.5
        mean, covariance = self.mean_and_covariance()
        return mean, _factor(covariance)

    def _check_count(self) -> None:
        if self.count < 2:
            raise ValueError(
                f"Moments: a covariance needs at least 2 rows, got {self.count}"
            )


Merged = tuple[int, Tensor, Tensor]  # count, mean [D], Σ (x - mean)(x - mean)ᵀ [D, D]


def _nothing(width: int) -> Merged:
    mean = torch.zeros(width, dtype=torch.float64)
    return 0, mean, mean.new_zeros(width, width)


def _merge(merged: Merged, block: Tensor) -> Merged:
    """Return what `merged` becomes with the rows of `block` [B, D]."""
    before, mean, scatter = merged
    if not len(block):
        return merged
    total = before + len(block)
    its_mean = block.mean(dim=0)
    centred = block - its_mean
    apart = its_mean - mean
    between = torch.outer(apart, apart) * (before * len(block) / total)
    mean = mean + apart * (len(block) / total)
    return total, mean, scatter + centred.T @ centred + between


def frechet_distance(one: Moments, other: Moments) -> float:
    """Return |m - n|² + tr(A + B - 2 (A B)^½), the distance of two Gaussians.

    With A = F Fᵀ and B = G Gᵀ the last trace is the sum of the singular values of
    Fᵀ G, which needs no root of a matrix that is not symmetric, and no push away from
    singular covariances.

    Returns:
        At least 0; 0 for equal sets up to rounding.

    Raises:
        ValueError: The widths differ, or a set has fewer than two rows.
    """
    if one.width != other.width:
        raise ValueError(
            "frechet_distance: both must have rows of one width, "
            f"got {one.width} and {other.width}"
        )
    (mean, f), (other_mean, g) = one.mean_and_factor(), other.mean_and_factor()
    shared = torch.linalg.svdvals(f.T @ g).sum()
    moved = (mean - other_mean).square().sum()
    return max((moved + f.square().sum() + g.square().sum() - 2 * shared).item(), 0.0)


def _factor(covariance: Tensor) -> Tensor:
    """Return F [D, rank] with F Fᵀ = the covariance, up to rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1]
    kept = values > rounding.clamp_min(0)
    return vectors[:, kept] * values[kept].sqrt()
