"""A source turned into batches without end, each a function of its number.

Sample n of a run is decided by (source, seed, n) alone: which picture (`Order`), its
crop and flip, and, where the picture is broken, which other one stands in. Step s of
global batch G holds n = s·G … s·G + G − 1; rank r of W takes the r-th share of it. So
going on means starting at a later step, and one process of 8 pictures or four of 2
see the same pictures in the same order, with any number of worker processes.

Workers read pieces of a batch rather than single samples, so that a picture crosses
between processes as part of one tensor, and rather than whole batches, so that what
waits in shared memory stays small.
"""

import itertools
import os
import random
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tokenflow.data.augment import AUGMENTS, augmented
from tokenflow.data.errors import BrokenPicture
from tokenflow.data.order import Order, key

PIECE = 64  # samples at most that a worker reads at a time
TEXTS = ("caption", "label")  # of a sample, passed on


class Source(Protocol):
    """What `Stream` reads: any sequence of dicts with an "image".

    `source[i]` is the same in every process: an RGB picture or uint8 [3, H, W] as
    "image", perhaps "caption" and "label", strings. It raises `BrokenPicture` for a
    picture that cannot be read. Where reaching a single sample is slow, `blocks()`
    gives the sizes of consecutive runs of samples that are quick to read together,
    and the attribute `window` how many of them it can hold.
    Samples of a source may have "indices" instead of "image": int64 [N], the tokens
    that a picture was turned into before; they are passed on as they are.
    """

    def __len__(self) -> int:
        """Return how many samples there are."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample."""


class Stream:
    """Batches of a source, without end.

    Iterating yields dicts: "image" uint8 [b, 3, size, size] with b = batch / world
    (or "indices" int64 [b, N], see `Source`),
    "number" and "index" int64 [b] (n, and the sample of the source that was used),
    "caption" and "label" (lists of b strings, where the source has them), "broken"
    (how many replacements this batch took) and "reasons" (why, a list of strings).
    Each new iteration begins at `start`.

    Args:
        source: See `Source`.
        size: Side of the pictures.
        batch: Pictures of a step over all ranks; a multiple of `world`.
        seed: Decides order and augmentation.
        start: The first step.
        rank: Which share of each batch, in [0, world).
        world: How many shares there are.
        workers: Processes that read; 0 reads here. No result depends on it.
        augment: "none" (centre crop) or "adm" (random crop).
        flip: Mirror every second picture.
        attempts: How many pictures in a row may be broken before it is an error.

    Raises:
        BrokenPicture: While iterating: `attempts` pictures in a row are broken.
        RuntimeError: While iterating: a worker process died.
        ValueError: An argument is out of range, or the source is empty.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: int,
        batch: int,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        augment: str = "none",
        flip: bool = True,
        attempts: int = 16,
    ):
        for name, value, least in (
            ("size", size, 1),
            ("batch", batch, 1),
            ("start", start, 0),
            ("world", world, 1),
            ("workers", workers, 0),
            ("attempts", attempts, 1),
        ):
            if value < least:
                raise ValueError(
                    f"stream: {name} must be at least {least}, got {value}"
                )
        if not 0 <= rank < world:
            raise ValueError(f"stream: rank must be in [0, {world}), got {rank}")
        if batch % world:
            raise ValueError(
                f"stream: batch must be a multiple of world = {world}, got {batch}"
            )
        if augment not in AUGMENTS:
            raise ValueError(
                f"stream: augment must be one of {list(AUGMENTS)}, got {augment!r}"
            )
        if not len(source):
            raise ValueError("stream: the source must hold at least one sample")
        self.source, self.size, self.batch, self.seed = source, size, batch, seed
        self.start, self.rank, self.world = start, rank, world
        self.workers, self.attempts = workers, attempts
        self.augment, self.flip = augment, flip
        blocks = getattr(source, "blocks", None)
        self.order = Order(
            len(source),
            seed,
            blocks=blocks() if blocks else None,
            window=getattr(source, "window", 8),
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of steps start, start + 1, …"""
        if self.workers:
            yield from self._from_workers()
        for step in itertools.count(self.start):
            yield self.read(step)

    def read(self, step: int) -> dict[str, Any]:
        """Return the batch of one step, read in this process."""
        pieces = range(step * self._pieces, (step + 1) * self._pieces)
        return _join([self._piece(number) for number in pieces])

    @property
    def _share(self) -> int:
        return self.batch // self.world

    @property
    def _pieces(self) -> int:
        """How many pieces a step of this rank is read in."""
        return -(-self._share // PIECE)

    def _from_workers(self) -> Iterator[dict[str, Any]]:
        loader = DataLoader(
            _Pieces(self),
            batch_size=None,
            sampler=_From(self.start * self._pieces),
            num_workers=self.workers,
            generator=torch.Generator(),  # the global one is left as it is
            worker_init_fn=_stand_apart,
        )
        pieces = None
        try:
            pieces = iter(loader)
            while True:
                yield _join([next(pieces) for _ in range(self._pieces)])
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            raise RuntimeError(
                "stream: a worker process died; was it out of memory, or of shared "
                f"memory (/dev/shm)? Fewer workers need less. ({error})"
            ) from error
        finally:  # now, not when the garbage collector finds the iterator
            if pieces is not None:
                pieces._shutdown_workers()

    def _piece(self, piece: int) -> dict[str, Any]:
        """Read one piece; steps are `_pieces` of them each."""
        step, part = divmod(piece, self._pieces)
        first = step * self.batch + self.rank * self._share
        ends = [self._share * (part + more) // self._pieces for more in (0, 1)]
        numbers = first + np.arange(*ends)
        samples, indices, reasons = [], self.order(numbers), []
        for place, number in enumerate(numbers.tolist()):
            sample, indices[place] = self._sample(number, int(indices[place]), reasons)
            samples.append(sample)
        what = "indices" if "indices" in samples[0] else "image"
        texts = {
            name: [sample[name] for sample in samples]
            for name in TEXTS
            if name in samples[0]
        }
        return {
            what: torch.stack([sample[what] for sample in samples]),
            **texts,
            "number": torch.from_numpy(numbers),
            "index": torch.from_numpy(indices),
            "broken": len(reasons),
            "reasons": reasons,
        }

    def _sample(
        self, number: int, index: int, reasons: list[str]
    ) -> tuple[dict[str, Any], int]:
        """Return sample n, ready for the batch, and which of the source it is."""
        failed = []
        for attempt in range(self.attempts):
            if attempt:
                index = self.order.another(number, attempt)
            try:
                sample = self.source[index]
            except BrokenPicture as error:
                failed.append(str(error))
                continue
            reasons += failed
            if "indices" in sample:
                return sample, index
            rng = random.Random(key(self.seed, 3, number))
            image = augmented(
                sample["image"], self.size, rng, augment=self.augment, flip=self.flip
            )
            return {**sample, "image": image}, index
        raise BrokenPicture(
            f"stream: {self.attempts} pictures in a row are broken (sample {number} "
            f"and what should stand in for it): {'; '.join(failed[:3])}"
        )


class _Pieces(Dataset):
    """Pieces by number, as torch's workers ask for them."""

    def __init__(self, stream: Stream):
        self.stream = stream

    def __getitem__(self, piece: int) -> dict[str, Any]:
        return self.stream._piece(piece)


def _stand_apart(worker: int) -> None:
    """Leave the group that Ctrl-C and torchrun signal: who reads decides what to do."""
    os.setpgrp()


class _From:
    """Numbers from one on, without end."""

    def __init__(self, first: int):
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


def _join(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    if len(pieces) == 1:
        return pieces[0]
    joined: dict[str, Any] = {}
    for name, value in pieces[0].items():
        values = [piece[name] for piece in pieces]
        if isinstance(value, torch.Tensor):
            joined[name] = torch.cat(values)
        elif isinstance(value, list):
            joined[name] = sum(values, [])
        else:
            joined[name] = sum(values)
    return joined
