"""Conversations turned into batches for a language model: ids, labels, pictures.

Which conversation is sample n of a run is decided by (source, seed, n) alone, as in
`tokenflow.data.stream`. So that little is padded, the samples of `group` steps are
sorted by length and shared out anew, step by step in a random order; that too depends
on the seed and the step alone. Rank r of W takes the r-th share of a step.
Source: the idea of grouping by length is LLaVA-1.5's, arXiv:2310.03744.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tokenflow.data.dialogues import (
    SCENES,
    Dialogues,
    SceneDialogues,
    SceneQuestions,
    open_dialogues,
)
from tokenflow.data.errors import BrokenPicture
from tokenflow.data.llava import Llava
from tokenflow.data.order import Order
from tokenflow.tokenizer.processing import to_batch
from tokenflow.training.pictures import KEPT
from tokenflow.training.talks import Row, Talk, looking_back, numbered, together
from tokenflow.understanding import prompts
from tokenflow.understanding.processing import TokenFlowProcessor

JUDGED = 32  # held-out conversations at a time
LEARNED_FROM = 2000  # conversations that a small vocabulary is learned from
ATTEMPTS = 16  # broken samples in a row before it is an error
LETTERS = 4  # of a token, roughly: lengths are only compared
WORDS = ("input_ids", "attention_mask", "position_ids")  # of a batch, what is read

Batch = dict[str, Any]


@dataclass(frozen=True)
class DialogueConfig:
    """Where conversations come from.

    Args:
        source: "scenes", or a file in LLaVA's format; see `tokenflow.data.llava`.
        pictures: Folder of its pictures; where the file is, when empty.
        heldout: Another such file to judge by. Empty: the held-out split of scenes, one
            conversation in twenty of a file.
        heldout_dialogues: How many are judged.
        group: Steps whose samples are sorted by length together; 1 sorts nothing.
        workers: Processes that read.

    Raises:
        ValueError: A value is out of its range.
    """

    source: str = SCENES
    pictures: str = ""
    heldout: str = ""
    heldout_dialogues: int = 256
    group: int = 16
    workers: int = 0

    def __post_init__(self) -> None:  # noqa: D105
        low = {"heldout_dialogues": 1, "group": 1, "workers": 0}
        for name, least in low.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"train: data.{name} must be at least {least}, "
                    f"got {getattr(self, name)}"
                )


class Some:
    """Some conversations of a source, by number.

    Args:
        source: The whole.
        numbers: Which.
    """

    def __init__(self, source: Dialogues, numbers: np.ndarray) -> None:
        self.source, self.numbers = source, numbers

    def __len__(self) -> int:
        """How many there are."""
        return len(self.numbers)

    def size(self, index: int) -> tuple[int, int]:
        """Return characters and pictures of one."""
        return self.source.size(int(self.numbers[index]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one of them."""
        return self.source[int(self.numbers[index])]


def open_sources(
    config: DialogueConfig, size: int, seed: int
) -> tuple[Dialogues, Dialogues]:
    """Return the conversations to learn from and to be judged by.

    Raises:
        FileNotFoundError: One of them is not there, or the emoji font is not.
        ValueError: A file holds too few.
    """
    drawn = {"size": size, "seed": seed, "length": 1 << 32}
    source = open_dialogues(config.source, config.pictures, **drawn)
    if SCENES in (config.heldout, config.heldout or config.source):
        return source, SceneQuestions(config.heldout_dialogues, size=size, seed=seed)
    if config.heldout:
        return source, open_dialogues(config.heldout, config.pictures)
    if len(source) < 2:
        raise ValueError(
            "train: data.source must hold at least 2 conversations, one to judge by, "
            f"{config.source} has {len(source)}; or name others as data.heldout"
        )
    numbers = np.arange(len(source))
    kept = numbers % KEPT == 0
    return Some(source, numbers[~kept]), Some(source, numbers[kept])


def spoken(config: DialogueConfig, template: str, seed: int) -> Iterator[str]:
    """Yield some conversations as they will be written, without pictures.

    Args:
        config: Where they come from.
        template: Name of their template.
        seed: Of drawn ones.
    """
    frame = prompts.template(template)
    if config.source == SCENES:
        drawn = SceneDialogues(seed=seed, size=64)
        talks: Iterator[Any] = itertools.chain.from_iterable(
            map(drawn.talks, range(LEARNED_FROM))
        )
    else:
        found = Llava(config.source, config.pictures or None)
        talks = map(found.turns, range(min(len(found), LEARNED_FROM)))
    for turns in talks:
        yield prompts.text(prompts.render(frame, turns, answer_next=False))


class Writer:
    """Writes conversations down for a model: a row of each sample.

    A sample is one conversation ("turns"), or several ("talks") about the same
    pictures, which make one row; see `talks`. With the template "plain" the words of
    questions are left out: a picture and what is said of it, as stage 1 is published.
    A conversation longer than `length` is cut at its end.

    Args:
        processor: Of the model that learns.
        length: Positions at most.
        blind: Leave the pictures out.
    """

    def __init__(
        self, processor: TokenFlowProcessor, length: int, *, blind: bool = False
    ) -> None:
        self.processor, self.length, self.blind = processor, length, blind
        self.frame = prompts.template(processor.template)

    def __call__(self, sample: dict[str, Any]) -> Row:
        """Return the row of a sample.

        Raises:
            BrokenPicture: Nothing that is learned, or not every picture, is within
                the length.
        """
        processor = self.processor
        images = [] if self.blind else sample["images"]
        talks = [
            self._talk(turns) for turns in sample.get("talks") or [sample["turns"]]
        ]
        (ids, labels), forks = together(talks, self.length)
        wanted, image = len(images) * processor.image_tokens, processor.image_token_id
        if forks and ids[: forks[0]].count(image) != wanted:  # they cannot be shared
            (ids, labels), forks = together(talks[-1:], self.length)
        seen = ids.count(image)
        if seen != wanted:
            raise BrokenPicture(
                f"dialogues: {len(images)} pictures must fit into {self.length} "
                f"positions, {seen} of their tokens do"
            )
        if all(label == prompts.IGNORED for label in labels[1:]):
            raise BrokenPicture(
                f"dialogues: an answer must begin within {self.length} positions"
            )
        side = processor.image_size
        if not images:
            none = torch.empty((0, 3, side, side), dtype=torch.uint8)
            return Row(ids, labels, none, forks)
        floats = to_batch(list(images), side, processor.resize)
        pixels = floats.add(1).mul(127.5).round().to(torch.uint8)
        return Row(ids, labels, pixels, forks)

    def _talk(self, turns: list[dict[str, str]]) -> Talk:
        processor = self.processor
        if processor.template == "plain":
            turns = [self._plain(turn) for turn in turns if turn["role"] != "system"]
        if self.blind:
            turns = [
                {**t, "content": t["content"].replace(prompts.IMAGE, "").lstrip("\n")}
                for t in turns
            ]
        pieces = prompts.render(self.frame, turns, answer_next=False)
        return prompts.tokenized(pieces, processor.tokenizer, processor.image_tokens)

    def _plain(self, turn: dict[str, str]) -> dict[str, str]:
        if turn["role"] == "user":
            return {**turn, "content": prompts.IMAGE * self._marks(turn)}
        return turn

    @staticmethod
    def _marks(turn: dict[str, str]) -> int:
        return turn["content"].count(prompts.IMAGE)

    def batch(self, rows: list[Row]) -> Batch:
        """Return rows as one batch, padded behind their ends.

        Returns:
            "input_ids", "labels" and "attention_mask" [b, T] int64, and "images": the
            pictures of each row. Where rows hold several conversations,
            "attention_mask" is [b, T, T] bool and there are "position_ids" [b, T].
        """
        longest = max(len(row.ids) for row in rows)
        own = self.processor.tokenizer
        fill = own.pad_token_id if own.pad_token_id is not None else own.eos_token_id
        ids = torch.full((len(rows), longest), fill or 0)
        labels = torch.full_like(ids, prompts.IGNORED)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row.ids)] = torch.tensor(row.ids)
            labels[place, : len(row.ids)] = torch.tensor(row.labels)
            mask[place, : len(row.ids)] = 1
        batch = {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": mask,
            "images": [row.images for row in rows],
        }
        if any(row.forks for row in rows):
            number, batch["position_ids"] = numbered(rows, longest)
            batch["attention_mask"] = looking_back(number, mask)
        return batch


@torch.no_grad()
def judged(
    read: Callable[[Batch], tuple[Tensor, Tensor]],
    writer: Writer,
    source: Dialogues,
    count: int,
) -> dict[str, float]:
    """Read held-out conversations.

    Args:
        read: Takes a batch, returns logits [b, T − 1, vocabulary] and their labels,
            maybe with rows added.
        writer: Writes them down.
        source: Has them.
        count: How many, at most.

    Returns:
        "heldout_loss", the mean over learned words, and "exact": the share of
        conversations of which every learned word was the likeliest one; per kind of
        question where the questions have one.
    """
    count = min(count, len(source))
    total, words, right = 0.0, 0, {"exact": [0, 0]}
    for start in range(0, count, JUDGED):
        rows, kinds = [], []
        for i in range(start, min(start + JUDGED, count)):
            try:
                sample = source[i]
                rows.append(writer(sample))
            except BrokenPicture:
                continue
            kinds.append(sample.get("kind"))
        if not rows:
            continue
        logits, labels = read(writer.batch(rows))
        logits, labels = logits[: len(rows)].float(), labels[: len(rows)]
        flat = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        learned = labels != prompts.IGNORED
        total, words = total + flat.item(), words + int(learned.sum())
        good = ((logits.argmax(-1) == labels) | ~learned).all(1).tolist()
        for hit, kind in zip(good, kinds, strict=True):
            for name in ("exact", *([f"exact_{kind}"] if kind else [])):
                found = right.setdefault(name, [0, 0])
                found[0] += hit
                found[1] += 1
    shares = {name: hit / max(1, n) for name, (hit, n) in sorted(right.items())}
    return {"heldout_loss": total / max(1, words), **shares}


class DialogueStream:
    """Batches of conversations, without end, from step `start` on.

    Args:
        source: See `Dialogues`.
        writer: Writes them down.
        batch: Conversations of a step over all ranks.
        group: Steps that are sorted by length together.
        seed: Decides the order.
        start, rank, world, workers: As of `tokenflow.data.stream.Stream`.
    """

    def __init__(
        self,
        source: Dialogues,
        writer: Writer,
        *,
        batch: int,
        group: int = 16,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        self.source, self.writer, self.seed = source, writer, seed
        self.batch, self.group, self.start = batch, group, start
        self.rank, self.world, self.workers = rank, world, workers
        self.order = Order(len(source), seed)
        self._sorted: tuple[int, list[list[int]]] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches, see `Writer.batch`; with "broken", how many were replaced."""
        if not self.workers:
            yield from map(self.read, itertools.count(self.start))
        loader = DataLoader(
            _Steps(self),
            batch_size=None,
            sampler=itertools.count(self.start),
            num_workers=self.workers,
            generator=torch.Generator(),
        )
        yield from loader

    def numbers(self, step: int) -> list[int]:
        """Return the samples of a step, over all ranks."""
        group, place = divmod(step, self.group)
        if self._sorted is None or self._sorted[0] != group:
            self._sorted = group, self._share_out(group)
        return self._sorted[1][place]

    def _share_out(self, group: int) -> list[list[int]]:
        count = self.group * self.batch
        numbers = np.arange(group * count, (group + 1) * count)
        if self.group > 1:
            lengths = [self._length(int(i)) for i in self.order(numbers)]
            numbers = numbers[np.argsort(lengths, kind="stable")]
        steps = numbers.reshape(self.group, self.batch).tolist()
        random.Random(f"{self.seed}/group/{group}").shuffle(steps)
        return steps

    def _length(self, index: int) -> int:
        characters, pictures = self.source.size(index)
        return characters // LETTERS + pictures * self.writer.processor.image_tokens

    def read(self, step: int) -> dict[str, Any]:
        """Return this rank's share of a step's batch."""
        share = self.batch // self.world
        mine = self.numbers(step)[self.rank * share : (self.rank + 1) * share]
        reasons: list[str] = []
        rows = [self._row(number, reasons) for number in mine]
        return {**self.writer.batch(rows), "broken": len(reasons)}

    def _row(self, number: int, reasons: list[str]) -> Row:
        index, failed = int(self.order(np.array([number]))[0]), []
        for attempt in range(ATTEMPTS):
            if attempt:
                index = self.order.another(number, attempt)
            try:
                row = self.writer(self.source[index])
            except BrokenPicture as error:
                failed.append(str(error))
                continue
            reasons += failed
            return row
        raise BrokenPicture(
            f"dialogues: {ATTEMPTS} in a row are broken (sample {number} and what "
            f"should stand in for it): {'; '.join(failed[:3])}"
        )


class _Steps(Dataset):
    """Batches by step, as torch's workers ask for them."""

    def __init__(self, stream: DialogueStream) -> None:
        self.stream = stream

    def __getitem__(self, step: int) -> dict[str, Any]:
        return self.stream.read(step)
