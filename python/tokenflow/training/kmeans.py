"""Centres of the vectors that are there: where a codebook may start.

The first centres are drawn a few at a time, each vector in proportion to its squared
distance from the centres drawn before, so that far groups are not missed (up to 32
centres one at a time, which is k-means++). Then vectors go to their nearest centre and
centres to the mean of their vectors, again and again; a centre without vectors is drawn
anew as the first ones were. Distances and means are those of a pair of books: the
halves are compared and averaged each for itself, as directions where `normalize` is
set.
Source: k-means++, Arthur and Vassilvitskii 2007; drawing many at a time after
k-means||, arXiv:1203.6402; as the published training code starts its books.
"""

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow.training.rows import CHUNK, Rows
from tokenflow_ext import code_histogram, nearest, quantize

DRAWS = 32  # in which the first centres are drawn
BITS = 14  # of a value, when squared distances are whole numbers


@dataclass(frozen=True)
class Metric:
    """How rows [semantic, pixel] are compared and averaged.

    Args:
        widths: Ds and Dp, of the halves.
        pixel_weight: Weight of the pixel distance.
        normalize: Whether either half is a direction.
    """

    widths: tuple[int, int]
    pixel_weight: float = 1.0
    normalize: bool = True

    def halves(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return both halves: [n, D] → [n, Ds] and [n, Dp]."""
        semantic, pixel = rows.split(self.widths, dim=1)
        return semantic, pixel

    def read(self, rows: Tensor) -> Tensor:
        """Return rows [n, D] as they are compared: halves of unit length, or as is."""
        if not self.normalize:
            return rows
        return torch.cat([F.normalize(half, dim=1) for half in self.halves(rows)], 1)

    def nearest(self, rows: Tensor, centres: Tensor) -> Tensor:
        """Return the nearest centre of each row: [n, D], [K, D] → [n] int64."""
        if not min(self.widths):  # one half alone
            return nearest(rows, centres, normalize=self.normalize)
        return quantize(
            *self.halves(rows),
            *self.halves(centres),
            pixel_weight=self.pixel_weight,
            normalize=self.normalize,
        )

    def placed(self, means: Tensor, before: Tensor) -> Tensor:
        """Return means [K, D] as entries: float32, of unit length where directions.

        A half whose mean has no direction (its vectors cancel) stays as `before`.
        """
        means = means.float()
        if not self.normalize:
            return means
        halves = []
        for mean, old in zip(self.halves(means), self.halves(before), strict=True):
            has_direction = mean.norm(dim=1, keepdim=True) > 1e-6
            halves.append(torch.where(has_direction, F.normalize(mean, dim=1), old))
        return torch.cat(halves, dim=1)

    def distances(self, rows: Rows, centres: Tensor, nearest: Tensor) -> Tensor:
        """Return the squared distance of each row to its centre, in whole numbers.

        [n] int64. The unit is common to all processes, and for centres among the rows
        (or their means) 2 ** 20 rows can be added.
        """
        largest = max(1.0, self.pixel_weight)
        root = torch.full_like(centres[0], largest**-0.5)
        root[self.widths[0] :] *= self.pixel_weight**0.5
        root *= 2.0 ** (BITS - rows.exponent)
        parts = [
            ((part - centres[at]) * root).round().long().square().sum(dim=1)
            for part, at in zip(
                rows.vectors.split(CHUNK), nearest.split(CHUNK), strict=True
            )
        ]
        return torch.cat(parts) if parts else nearest.new_zeros(0)


@torch.no_grad()
def kmeans(
    rows: Rows, metric: Metric, entries: int, rounds: int, rng: random.Random
) -> Tensor:
    """Return centres of the rows, the same on every process and for any number of them.

    Args:
        rows: Vectors [semantic, pixel], float32; of unit length in either half where
            directions are compared.
        metric: How they are compared.
        entries: K, how many centres; more than there are rows makes some equal.
        rounds: How often rows are assigned and centres moved.
        rng: The same on every process.

    Returns:
        [K, D] float32.

    Raises:
        ValueError: There are no rows.
    """
    centres = _first(rows, metric, entries, rng)
    for _ in range(rounds):
        nearest = metric.nearest(rows.vectors, centres)
        counts = rows.world.sum(code_histogram(nearest, entries))
        means = rows.sums(nearest, entries) / counts.clamp_min(1)[:, None]
        used = (counts > 0)[:, None]
        centres = torch.where(used, metric.placed(means, centres), centres)
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            far = metric.distances(rows, centres, nearest)
            centres[empty] = rows.pick(rows.draw(far, len(empty), rng))
    return centres


def _first(rows: Rows, metric: Metric, entries: int, rng: random.Random) -> Tensor:
    """Draw the centres to begin with: [K, D]."""
    share = -(-entries // DRAWS)
    centres = rows.pick(rows.sample(share, rng))
    far = _to_nearest(rows, metric, centres)
    while len(centres) < entries:
        more = min(share, entries - len(centres))
        new = rows.pick(rows.draw(far, more, rng))
        far = torch.minimum(far, _to_nearest(rows, metric, new))
        centres = torch.cat([centres, new])
    return centres[:entries]


def _to_nearest(rows: Rows, metric: Metric, centres: Tensor) -> Tensor:
    return metric.distances(rows, centres, metric.nearest(rows.vectors, centres))
