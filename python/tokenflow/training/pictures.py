"""Which pictures a run learns from, and which it is judged by.

The worlds we draw ourselves have a held-out split. Of the user's own pictures, where
no others are named to judge by, one in twenty is kept from training, the same ones in
every run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor

from tokenflow.data.augment import AUGMENTS
from tokenflow.data.sources import DRAWN, open_source
from tokenflow.data.stream import Source, Stream
from tokenflow.training.run import RunConfig
from tokenflow.training.world import World

KEPT = 20  # one picture in so many is kept from training


@dataclass(frozen=True)
class DataConfig:
    """Where pictures come from.

    Args:
        source: "scenes", "glyphs", a folder, tars or Parquet files; see
            `tokenflow.data.sources.open_source`.
        also: Further sources, read as often as `source` each, for their pictures alone.
        heldout: What to judge by. Empty: the held-out split of what we draw, one
            picture in twenty of everything else.
        heldout_pictures: How many are judged.
        workers: Processes that read pictures.
        augment: "none" (centre crop) or "adm" (random crop, as published).
        flip: Mirror every second picture.

    Raises:
        ValueError: A value is out of its range.
    """

    source: str = "scenes"
    also: tuple[str, ...] = ()
    heldout: str = ""
    heldout_pictures: int = 256
    workers: int = 0
    augment: str = "none"
    flip: bool = False

    def __post_init__(self) -> None:  # noqa: D105
        if self.augment not in AUGMENTS:
            raise ValueError(
                f"train: data.augment must be one of {list(AUGMENTS)}, "
                f"got {self.augment!r}"
            )
        for name, least in (("heldout_pictures", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"train: data.{name} must be at least {least}, "
                    f"got {getattr(self, name)}"
                )


class Every:
    """Some samples of a source: each `KEPT`-th one, or all the others, in order.

    Args:
        source: The whole.
        kept: Whether this is the part that is kept from training.
    """

    def __init__(self, source: Source, kept: bool) -> None:
        self.source, self.kept = source, kept
        self.window = getattr(source, "window", 8)

    def __len__(self) -> int:
        """How many there are."""
        return self._before(len(self.source))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one of them."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        if self.kept:
            return self.source[index * KEPT]
        group, place = divmod(index, KEPT - 1)
        return self.source[group * KEPT + 1 + place]

    def blocks(self) -> list[int]:
        """Return how many of each block of the source are among them."""
        whole = getattr(self.source, "blocks", None)
        ends = accumulate(whole() if whole else [len(self.source)])
        return [b - a for a, b in pairwise([0, *map(self._before, ends)])]

    def _before(self, end: int) -> int:
        """Return how many of the source's first `end` samples are among them."""
        kept = -(-end // KEPT)
        return kept if self.kept else end - kept


class Mixed:
    """Several sources in turn, for their pictures alone.

    Args:
        sources: Each is read up to the length of the shortest.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources

    def __len__(self) -> int:
        """How many there are."""
        return len(self.sources) * min(map(len, self.sources))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one of them."""
        place, which = divmod(index, len(self.sources))
        return {"image": self.sources[which][place]["image"]}


def open_pictures(
    config: DataConfig,
    size: int,
    seed: int,
    how: Callable[..., Source] = open_source,
) -> tuple[Source, Source]:
    """Return the sources to learn from and to be judged by.

    Args:
        config: Where they are.
        size: Side of the pictures.
        seed: Of those that are drawn.
        how: Opens one of them.

    Raises:
        FileNotFoundError: One of them is not there, or the emoji font is not.
        ValueError: There are too few pictures to keep some from training.
    """
    drawn = {"size": size, "seed": seed, "length": 1 << 32}

    def opened(name: str) -> Source:
        return how(name, **({"split": "train", **drawn} if name in DRAWN else {}))

    source = opened(config.source)
    if config.heldout in DRAWN or (not config.heldout and config.source in DRAWN):
        name = config.heldout or config.source
        heldout = how(name, split="heldout", **drawn)
    elif config.heldout:
        heldout = how(config.heldout)
    else:
        source, heldout = _apart(source, config.source)
    if config.also:
        source = Mixed([source, *map(opened, config.also)])
    return source, heldout


def _apart(source: Source, name: str) -> tuple[Source, Source]:
    """Return the pictures to learn from and those kept from training."""
    if len(source) < 2:
        raise ValueError(
            f"train: data.source must hold at least 2 pictures, one to judge by, "
            f"{name} has {len(source)}; or name others as data.heldout"
        )
    return Every(source, kept=False), Every(source, kept=True)


def picture_batches(
    source: Source,
    data: DataConfig,
    run: RunConfig,
    size: int,
    start: int,
    world: World,
) -> Iterator[dict[str, Any]]:
    """Yield this process's share of each step's samples, from `start` on; `Stream`."""
    stream = Stream(
        source,
        size=size,
        batch=run.batch,
        seed=run.seed,
        start=start,
        rank=world.rank,
        world=world.size,
        workers=data.workers,
        augment=data.augment,
        flip=data.flip,
    )
    return iter(stream)


def heldout_batch(
    source: Source, config: DataConfig, size: int, world: World
) -> Tensor:
    """Return this process's share of the pictures to judge by: uint8 [n, 3, R, R].

    Every process has equally many, and together they have all that were asked for, or
    as many as there are; a rest that cannot be shared is left out.
    """
    share = max(1, min(config.heldout_pictures, len(source)) // world.size)
    stream = Stream(
        source,
        size=size,
        batch=share * world.size,
        rank=world.rank,
        world=world.size,
        flip=False,
    )
    return stream.read(0)["image"]
