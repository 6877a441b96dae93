"""The vectors of one step, held by several processes, as one ordered list.

Every process holds a contiguous share of the pictures, so row number n is the same
vector however many processes there are. Rows are picked by number and never gathered
as a whole. They are added as whole numbers of a fixed small size: the order in which
that is done changes no bit, so sums do not depend on the number of processes either.
"""

import math
import random

import torch
from torch import Tensor

from tokenflow.training.world import World

BITS = 30  # of the largest value, when values are added as whole numbers
CHUNK = 1 << 16  # rows at a time where whole numbers of them are made


class Rows:
    """Vectors that all processes of a world hold together.

    Args:
        vectors: [n, D] floating, this process's share, all finite; n may differ from
            process to process, and be 0.
        world: The processes; their ranks are the order of the shares.
    """

    def __init__(self, vectors: Tensor, world: World) -> None:
        self.vectors, self.world = vectors, world
        self._exponent: int | None = None
        size = torch.tensor([len(vectors)], device=vectors.device)
        sizes = world.gather(size).tolist()
        self.first, self.total = sum(sizes[: world.rank]), sum(sizes)

    @property
    def exponent(self) -> int:
        """The least with no value of any process above 2 ** exponent."""
        if self._exponent is None:
            values = self.vectors
            top = values.abs().max() if len(values) else values.new_zeros(())
            top = float(self.world.gather(top.float().reshape(1)).max())
            self._exponent = math.frexp(top)[1]
        return self._exponent

    def pick(self, numbers: Tensor) -> Tensor:
        """Return the rows of those numbers, on every process: [m] → [m, D]."""
        numbers = numbers.to(self.vectors.device) - self.first
        mine = (numbers >= 0) & (numbers < len(self.vectors))
        found = self.vectors.new_zeros(len(numbers), self.vectors.shape[1])
        found[mine] = self.vectors[numbers[mine]]
        return self.world.sum(found)

    def sample(self, many: int, rng: random.Random) -> Tensor:
        """Return `many` row numbers, [many] int64, none twice while there are others.

        Raises:
            ValueError: There are no rows.
        """
        if self.total == 0:
            raise ValueError("rows: there must be rows to draw from, got none")
        numbers: list[int] = []
        while len(numbers) < many:
            left = min(many - len(numbers), self.total)
            numbers += rng.sample(range(self.total), left)
        return torch.tensor(numbers)

    def some(self, many: int, rng: random.Random) -> "Rows":
        """Return `many` of the rows in their order, or all where there are no more."""
        if self.total <= many:
            return self
        numbers = self.sample(many, rng).sort().values - self.first
        mine = numbers[(numbers >= 0) & (numbers < len(self.vectors))]
        return Rows(self.vectors[mine.to(self.vectors.device)], self.world)

    def sums(self, groups: Tensor, count: int) -> Tensor:
        """Add up the rows of each group, over all processes.

        Args:
            groups: [n] int64 in [0, count), of this process's rows.
            count: How many groups there are.

        Returns:
            [count, D] float64: sums of the rows rounded to 2 ** -30 of the largest.
        """
        steps = 2.0 ** (BITS - self.exponent)
        total = self.vectors.new_zeros(count, self.vectors.shape[1], dtype=torch.int64)
        chunks = zip(self.vectors.split(CHUNK), groups.split(CHUNK), strict=True)
        for part, group in chunks:
            total.index_add_(0, group, (part.double() * steps).round().long())
        return self.world.sum(total).double() / steps

    def draw(self, weights: Tensor, many: int, rng: random.Random) -> Tensor:
        """Return row numbers drawn in proportion to weights: [many] int64.

        The marks lie evenly on the summed weights, so a row of little weight is not
        drawn twice. Where all weights are 0, every row is as likely.

        Args:
            weights: [n] int64, at least 0, of this process's rows.
            many: How many to draw.
            rng: The same on every process.
        """
        ends = weights.cumsum(0)
        own = ends[-1:] if len(ends) else ends.new_zeros(1)
        owns = self.world.gather(own).tolist()
        before, total = sum(owns[: self.world.rank]), sum(owns)
        if total == 0:
            return self.sample(many, rng)
        start = rng.randrange(total)
        marks = [(start + j * total // many) % total - before for j in range(many)]
        mark = torch.tensor(marks, device=weights.device)
        mine = (mark >= 0) & (mark < int(own))
        numbers = torch.zeros_like(mark)
        numbers[mine] = self.first + torch.searchsorted(ends, mark[mine], right=True)
        return self.world.sum(numbers)
