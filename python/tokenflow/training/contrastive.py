"""A teacher of one's own, from pictures with captions.

Two terms. The first is SigLIP's: every picture is held against every caption of the
batch, and a sigmoid says for each pair whether the two belong together. The second is
what makes the patches mean something, since it is them a tokenizer learns from: pieces
of captions (one to three neighbouring tokens, so "red" and "red car") are held
against patches. A piece belongs to a picture whose caption has it, and what is judged
is the best of the picture's patches, softly: the one that shows the thing is
the one that gets the gradient.

Several processes: the texts of all are gathered, with gradients, and each process
holds its own pictures against them. The mean over the processes of loss and gradient
is that of one process with the whole batch. Micro batches see their own texts only.
Sources: SigLIP, arXiv:2303.15343; the soft best of many places as evidence for the
whole picture, arXiv:1411.6228.
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from tokenflow.data.errors import BrokenPicture
from tokenflow.data.stream import Source, Stream
from tokenflow.tokenizer.contrastive import (
    ALPHABET,
    PAD,
    SPECIAL,
    ImageTextModel,
    Vocabulary,
    as_batch,
)
from tokenflow.training.log import Log
from tokenflow.training.loop import Batch, Moment, RunConfig, fit
from tokenflow.training.optimizers import OptimizerConfig
from tokenflow.training.parallel import whole_state
from tokenflow.training.pictures import DataConfig, open_pictures
from tokenflow.training.tokenizer import as_input, outer_blocks
from tokenflow.training.world import World, join

LONGEST_PIECE = 3
JUDGED = 64  # held-out pictures at a time
BITS = 20  # of a token in the key of a piece; 3 · 20 fit an int64


@dataclass(frozen=True)
class TeacherConfig:
    """What a teacher is made of and how it learns.

    Args:
        encoder: `kind` ("clip", "siglip", "vitamin") and sizes of the picture encoder.
        image_size: Side of the pictures.
        width: Width of the space that pictures and texts share, and of what the
            teacher says of a patch.
        text: Arguments of the text encoder: width, layers, heads, length.
        vocabulary: Most tokens of the vocabulary.
        captions: From how many captions it is learned.
        dense: Weight of the second term, above 0.
        pieces: Pieces of each caption that enter the second term in a step.

    Raises:
        ValueError: A value is out of its range.
    """

    encoder: dict[str, Any] = field(
        default_factory=lambda: {
            "kind": "clip",
            "width": 96,
            "layers": 4,
            "heads": 4,
            "patch": 8,
            "image_size": 64,
        }
    )
    image_size: int = 64
    width: int = 96
    text: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 1024
    captions: int = 5000
    dense: float = 1.0
    pieces: int = 8

    def __post_init__(self) -> None:  # noqa: D105
        if not self.dense > 0:
            raise ValueError(f"train: model.dense must be above 0, got {self.dense}")
        low = {"image_size": 1, "width": 1, "captions": 1, "pieces": 1}
        low["vocabulary"] = ALPHABET + len(SPECIAL)
        for name, least in low.items():
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"train: model.{name} must be at least {least}, got "
                    f"{getattr(self, name)}"
                )
        if self.vocabulary >= 1 << BITS:
            raise ValueError(
                f"train: model.vocabulary must be below {1 << BITS}, got "
                f"{self.vocabulary}"
            )


@dataclass(frozen=True)
class TeacherRecipe:
    """All that defines a teacher's training.

    Args:
        model: What it is made of, and its terms.
        data: Pictures with captions.
        optimizer: Of all of it.
        run: For how long, in what steps.
    """

    task: ClassVar[str] = "teacher"

    model: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)


class _Gather(torch.autograd.Function):
    """World.gather, with the gradient of every process's use."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        ctx.world, ctx.rows = world, len(tensor)
        return world.gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        world, rows = ctx.world, ctx.rows
        total = world.sum(gradient.contiguous())
        return total[world.rank * rows : (world.rank + 1) * rows], None


def gather(tensor: Tensor, world: World) -> Tensor:
    """Return the tensors of all processes along dimension 0, differentiable."""
    return tensor if world.size == 1 else _Gather.apply(tensor, world)


def sigmoid_loss(
    pictures: Tensor, texts: Tensor, belongs: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    """Return SigLIP's loss: the mean over pictures of the sum over texts of
    −log σ(z (exp(scale) · cosine + bias)), z = 1 where a text belongs to the picture
    and −1 elsewhere.

    Args:
        pictures: [n, width] unit vectors.
        texts: [N, width] unit vectors.
        belongs: [n, N] bool.
        scale: Logarithm of the temperature, a scalar.
        bias: Scalar.
    """
    logits = pictures @ texts.T * scale.exp() + bias
    signs = belongs.to(logits.dtype) * 2 - 1
    return -F.logsigmoid(signs * logits).sum(1).mean()


def pieces_of(numbers: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Return every run of one to LONGEST_PIECE tokens, once, under its key."""
    runs = {}
    for length in range(1, LONGEST_PIECE + 1):
        for start in range(len(numbers) - length + 1):
            run = tuple(numbers[start : start + length])
            runs[sum(n << BITS * i for i, n in enumerate(run))] = run
    return runs


@dataclass(frozen=True)
class Texts:
    """The texts of a batch as tokens."""

    captions: Tensor  # [n, T]
    caption_keys: Tensor  # [n], equal for equal captions
    pieces: Tensor  # [n · P, LONGEST_PIECE + 1], P drawn of each caption
    keys: Tensor  # [n · P], 0 for what fills up a caption without tokens
    all_keys: Tensor  # [n, M], every piece of the caption; 0 fills up

    def to(self, device: torch.device) -> "Texts":
        """Return the same on another device."""
        return Texts(*(getattr(self, f.name).to(device) for f in fields(self)))


def read_texts(
    captions: Sequence[str],
    vocabulary: Vocabulary,
    length: int,
    pieces: int,
    rng_of: Callable[[str], random.Random],
) -> Texts:
    """Turn captions into tokens and draw `pieces` pieces of each.

    Args:
        captions: n captions.
        vocabulary: Of the model.
        length: Most tokens of a text.
        pieces: P.
        rng_of: Takes a caption and returns the generator that draws its pieces.
    """
    numbers = [row[: length - 1] for row in vocabulary.numbers(captions)]
    drawn, keys, all_keys = [], [], []
    for caption, row in zip(captions, numbers, strict=True):
        runs = pieces_of(row)
        known = sorted(runs)
        all_keys.append(known)
        chosen = rng_of(caption).choices(known or [0], k=pieces)
        keys += chosen
        drawn += [runs.get(key, ()) for key in chosen]
    most = max(map(len, all_keys), default=0)
    table = [row + [0] * (most - len(row)) for row in all_keys]
    tokens = as_batch(drawn, LONGEST_PIECE + 1)
    return Texts(
        as_batch(numbers, length),
        torch.tensor([_key(row) for row in numbers], dtype=torch.int64),
        F.pad(tokens, (0, LONGEST_PIECE + 1 - tokens.shape[1]), value=PAD),
        torch.tensor(keys, dtype=torch.int64),
        torch.tensor(table, dtype=torch.int64).reshape(len(captions), most),
    )


def _key(numbers: Sequence[int]) -> int:
    digest = hashlib.blake2b(repr(list(numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def dense_logits(patches: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return how likely each picture has each piece, see `dense_loss`: [n, U]."""
    cosines = torch.einsum("nlw,uw->nul", patches, texts)
    best = torch.logsumexp(cosines * scale.exp(), 2) - math.log(patches.shape[1])
    return best + bias


def dense_loss(
    patches: Tensor,
    texts: Tensor,
    belongs: Tensor,
    scale: Tensor,
    bias: Tensor,
) -> Tensor:
    """Return how badly the best patches tell which pieces belong to a picture.

    The logit of a picture and a piece is the logarithm of the mean over patches of
    exp(logit of the patch), a maximum with soft edges. For each picture the pieces
    that belong to it and those that do not weigh the same, however few the former.

    Args:
        patches: [n, L, width] unit vectors.
        texts: [U, width] unit vectors of pieces.
        belongs: [n, U] bool.
        scale, bias: As in `sigmoid_loss`.
    """
    logits = dense_logits(patches, texts, scale, bias)
    right = _row_mean(F.logsigmoid(logits), belongs)
    wrong = _row_mean(F.logsigmoid(-logits), ~belongs)
    return -(right + wrong).mean() / 2


def _row_mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Return each row's mean of the chosen values, 0 where none is."""
    return (values * chosen).sum(1) / chosen.sum(1).clamp(min=1)


class TeacherTask:
    """A teacher in training; see `loop.Task` for the methods.

    Args:
        recipe: All that defines it.
        world: This process among the others.
        say: Takes a line for people.

    Raises:
        ValueError: The pictures have no captions, or the sizes do not fit.
    """

    def __init__(
        self,
        recipe: TeacherRecipe,
        world: World,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.recipe, self.world = recipe, world
        config, data = recipe.model, recipe.data
        self.source, heldout = open_pictures(data, config.image_size, recipe.run.seed)
        vocabulary = Vocabulary.learn(
            captions_of(self.source, config.captions, data.source), config.vocabulary
        )
        say(f"vocabulary: {len(vocabulary)} tokens")
        count = min(data.heldout_pictures, len(heldout))
        judged = Stream(heldout, size=config.image_size, batch=count, flip=False)
        self.heldout = judged.read(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.run.seed)
            self.model = ImageTextModel(
                config.encoder, vocabulary, config.image_size, config.width, config.text
            )
        self.model.to(world.device).train()
        self.parts: dict[str, nn.Module] = {"model": self.model}
        self.kept: dict[str, nn.Module] = {}
        self.optimizers = {"model": recipe.optimizer}

    def whole(self, part: str) -> tuple[nn.Parameter, ...]:
        """Return the temperatures and biases, which are single numbers."""
        model = self.model
        return model.scale, model.bias, model.patch_scale, model.patch_bias

    def blocks(self, part: str) -> tuple[nn.Module, ...]:
        """Return the transformer layers."""
        return outer_blocks(self.model)

    def averaged(self) -> str:
        """Return the name of the model."""
        return "model"

    def batches(self, start: int, world: World) -> Iterator[Batch]:
        """Yield this process's share of each step's pictures and captions."""
        data, run = self.recipe.data, self.recipe.run
        stream = Stream(
            self.source,
            size=self.recipe.model.image_size,
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

    def before_step(
        self, batch: Batch, optimizers: dict[str, torch.optim.Optimizer], moment: Moment
    ) -> None:
        """Nothing is to be prepared."""

    def loss(
        self, part: str, call: nn.Module, batch: Batch, moment: Moment
    ) -> dict[str, Tensor]:
        """Return both terms and their weighted sum as "loss"."""
        model, world, config = self.model, moment.world, self.recipe.model
        images = as_input(batch["image"])
        texts = read_texts(
            batch["caption"],
            model.vocabulary,
            model.text_encoder.length,
            config.pieces,
            lambda caption: moment.rng("pieces", caption),
        ).to(images.device)
        once, where = first_of_each(texts.keys)
        pictures, patches, captions, pieces = call(
            images, texts.captions, texts.pieces[once]
        )
        captions, keys = everywhere(captions, texts.caption_keys, world)
        whole = sigmoid_loss(
            pictures,
            captions,
            texts.caption_keys[:, None] == keys,
            model.scale,
            model.bias,
        )
        pieces, keys = everywhere(pieces[where], texts.keys, world)
        dense = dense_loss(
            patches,
            pieces,
            (texts.all_keys[:, None] == keys[:, None]).any(2),
            model.patch_scale,
            model.patch_bias,
        )
        return {"loss": whole + config.dense * dense, "captions": whole, "dense": dense}

    def after_step(
        self, optimizers: dict[str, torch.optim.Optimizer], moment: Moment
    ) -> dict[str, float]:
        """Return the temperatures."""
        model = self.model
        return {
            "temperature": model.scale.exp().item(),
            "dense_temperature": model.patch_scale.exp().item(),
        }

    @torch.no_grad()
    def judge(self, log: Log, moment: Moment) -> dict[str, float]:
        """Look at the held-out pictures, every process at all of them.

        Returns:
            "retrieval": the share of pictures whose own caption is the most similar
            one of all; "pieces": how well patches tell which pieces belong to a
            picture, the mean of the shares that are right among those that do and
            among those that do not (0.5 is chance).
        """
        model = self.model.eval()
        if isinstance(model, FSDPModule):
            for name in ("encode_images", "encode_tokens", "encode_texts"):
                register_fsdp_forward_method(model, name)
        captions = self.heldout["caption"]
        known = sorted(set(captions))
        vectors = model.encode_texts(known)
        texts = read_texts(
            captions, model.vocabulary, model.text_encoder.length, 4, random.Random
        ).to(vectors.device)
        once, _ = first_of_each(texts.keys)
        once = once[texts.keys[once] != 0]
        keys, pieces = texts.keys[once], model.encode_tokens(texts.pieces[once])
        found, right, wrong = 0, [], []
        for start in range(0, len(captions), JUDGED):
            here = slice(start, start + JUDGED)
            images = as_input(self.heldout["image"][here].to(vectors.device))
            pictures, patches = model.encode_images(images)
            best = (pictures @ vectors.T).argmax(1).tolist()
            found += sum(
                known[i] == caption
                for i, caption in zip(best, captions[here], strict=True)
            )
            logits = dense_logits(patches, pieces, model.patch_scale, model.patch_bias)
            belongs = (texts.all_keys[here, None] == keys[:, None]).any(2)
            right.append(_row_mean((logits > 0).float(), belongs))
            wrong.append(_row_mean((logits <= 0).float(), ~belongs))
        model.train()
        share = (torch.cat(right).mean() + torch.cat(wrong).mean()) / 2
        return {"retrieval": found / len(captions), "pieces": share.item()}

    def finish(self, folder: Path, world: World) -> None:
        """Write RUN/model, as `load_teacher` reads it."""
        weights = whole_state(self.model)
        if world.first:
            self.model.save_pretrained(folder / "model", weights)
        world.wait()


def train_teacher(
    recipe: TeacherRecipe,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    bar: bool | None = None,
) -> dict[str, Any]:
    """Train a teacher on pictures with captions and write it to `folder`/model.

    One process, or one of those that torchrun started. Arguments, result and errors
    are those of `tokenizer.train_tokenizer`.
    """
    with join(device) as world:
        return fit(
            lambda say: TeacherTask(recipe, world, say),
            recipe,
            folder,
            world=world,
            resume=resume,
            bar=bar,
        )


def captions_of(source: Source, count: int, name: str) -> Iterator[str]:
    """Yield `count` captions from all over a source; broken pictures are passed over.

    Raises:
        ValueError: A sample has none.
    """
    count = min(count, len(source))
    for i in range(count):
        try:
            sample = source[i * len(source) // count]
        except BrokenPicture:
            continue
        if "caption" not in sample:
            raise ValueError(
                f"train: data.source must have captions to train a teacher, {name} has "
                f"none (its samples have {sorted(sample)})"
            )
        yield sample["caption"]


def everywhere(vectors: Tensor, keys: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """Return the vectors and keys of all processes' texts, each text once.

    [n, width] and [n] → [N, width] and [N]; a key of 0 is no text.
    """
    vectors, keys = gather(vectors, world), world.gather(keys)
    once, _ = first_of_each(keys)
    once = once[keys[once] != 0]
    return vectors[once], keys[once]


def first_of_each(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each distinct key is first, and for every key which it is."""
    distinct, which = torch.unique(keys, return_inverse=True)
    places = torch.arange(len(keys), device=keys.device)
    first = torch.full_like(distinct, len(keys)).scatter_reduce_(
        0, which, places, "amin"
    )
    return first, which
