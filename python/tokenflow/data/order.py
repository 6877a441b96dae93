"""In which order a source is read: a function of (seed, n), never a list.

`shuffle` is a permutation that is computed, not stored: the position is written as
two digits in a mixed base, and rounds of a hash of one digit are added to the other
(a Feistel network over ℤ_a × ℤ_b). Results that fall outside the range are put through
again until they fall inside. So ten million samples cost no memory and no start-up
time, any worker finds any sample's place alone, and whole-number arithmetic gives the
same order on every machine and with every version of numpy.
Source: Luby and Rackoff 1988 (rounds); Black and Rogaway 2002 (mixed base, walking
back into range); the hash ends as SplitMix64, Steele et al. 2014.
"""

from collections.abc import Sequence

import numpy as np

ROUNDS = 8
U64 = np.uint64


def mix(values: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each number; one-to-one on uint64."""
    values = values + U64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> U64(27))) * U64(0x94D049BB133111EB)
    return values ^ (values >> U64(31))


def key(*words: int) -> int:
    """Return one 64-bit number of several whole numbers, their order included."""
    state = np.zeros(1, U64)
    for word in words:
        state = mix(state ^ np.array([word % 2**64], U64))
    return int(state[0])


def shuffle(positions: np.ndarray, lengths: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return where each position goes in the permutation of its length and key.

    Args:
        positions: [N] uint64, each below its length.
        lengths: [N] uint64 below 2⁵²: of what range the position is one.
        keys: [N] uint64: which permutation of that range.

    Returns:
        [N] uint64, each below its length; for one length and key, no two alike.
    """
    wide = np.ceil(np.sqrt(lengths.astype(np.float64))).astype(U64)
    high = (lengths + wide - U64(1)) // wide
    salts = [mix(keys + U64(number)) for number in range(ROUNDS)]
    places = positions.copy()
    open_ = np.arange(len(places))
    while len(open_):
        places[open_] = _rounds(
            places[open_], wide[open_], high[open_], [salt[open_] for salt in salts]
        )
        open_ = open_[places[open_] >= lengths[open_]]
    return places


def _rounds(
    places: np.ndarray, wide: np.ndarray, high: np.ndarray, salts: list[np.ndarray]
) -> np.ndarray:
    upper, lower = places // wide, places % wide
    for number, salt in enumerate(salts):
        if number % 2:
            upper = (upper + mix(lower ^ salt) % high) % high
        else:
            lower = (lower + mix(upper ^ salt) % wide) % wide
    return upper * wide + lower


class Order:
    """Which sample of a source is the n-th of a run, epoch after epoch.

    Each epoch shows every sample once. Where single samples are slow to reach, the
    source is a row of blocks: an epoch shuffles the blocks, takes `window` of them at
    a time, and shuffles the samples of those. With at most `window` blocks that mixes
    everything, as without blocks.

    Args:
        length: How many samples, at least 1.
        seed: Any whole number.
        blocks: Sizes of the consecutive blocks; they sum to `length`.
        window: How many blocks are mixed at a time, at least 1.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        *,
        blocks: Sequence[int] | None = None,
        window: int = 8,
    ):
        if length < 1:
            raise ValueError(f"order: length must be at least 1, got {length}")
        if window < 1:
            raise ValueError(f"order: window must be at least 1, got {window}")
        self.length, self.seed, self.window = length, seed, window
        self._blocks = None
        self._rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        if blocks is not None:
            sizes = np.asarray(blocks, np.int64)
            if sizes.ndim != 1 or (sizes < 0).any() or sizes.sum() != length:
                raise ValueError(
                    f"order: blocks must be sizes that sum to {length}, the length of "
                    f"the source, got {len(sizes)} that sum to {sizes.sum()}"
                )
            if len(sizes) > window:
                self._blocks = sizes

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Return the index [N] int64 of each number n ≥ 0 [N] int64 of the run."""
        numbers = np.asarray(numbers, np.int64)
        epochs, places = np.divmod(numbers, self.length)
        if self._blocks is None:
            keys = self._keys(epochs)
            lengths = np.full(len(places), self.length, U64)
            return shuffle(places.astype(U64), lengths, keys).astype(np.int64)
        indices = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._within_windows(int(epoch), places[here])
        return indices

    def permutation(self, epoch: int) -> np.ndarray:
        """Return one whole epoch, [length] int64."""
        return self(np.arange(epoch * self.length, (epoch + 1) * self.length))

    def another(self, number: int, attempt: int) -> int:
        """Return the index that stands in for number n, in its attempt ≥ 1."""
        return key(self.seed, 1, number, attempt) % self.length

    def _keys(self, epochs: np.ndarray) -> np.ndarray:
        return mix(epochs.astype(U64) ^ U64(key(self.seed, 0)))

    def _within_windows(self, epoch: int, places: np.ndarray) -> np.ndarray:
        ends, ranks = self._row(epoch)
        starts = np.cumsum(self._blocks) - self._blocks
        window = np.searchsorted(ends[self.window - 1 :: self.window], places, "right")
        first = window * self.window
        last = np.minimum(first + self.window, len(ends)) - 1
        begin = np.where(first > 0, ends[first - 1], 0)
        lengths = (ends[last] - begin).astype(U64)
        keys = mix(self._keys(np.full(len(places), epoch)) + window.astype(U64))
        mixed = shuffle((places - begin).astype(U64), lengths, keys)
        places = begin + mixed.astype(np.int64)
        block = np.searchsorted(ends, places, "right")
        within = places - np.where(block > 0, ends[block - 1], 0)
        return starts[ranks[block]] + within

    def _row(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch's row of blocks: where each ends, and which it is."""
        if epoch not in self._rows:
            if len(self._rows) > 1:
                self._rows.clear()
            count = len(self._blocks)
            every = np.full(count, count, U64)
            keys = np.full(count, key(self.seed, 2, epoch), U64)
            ranks = shuffle(np.arange(count, dtype=U64), every, keys).astype(np.int64)
            self._rows[epoch] = np.cumsum(self._blocks[ranks]), ranks
        return self._rows[epoch]
