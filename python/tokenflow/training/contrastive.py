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
is that of one process with the whole batch.
Sources: SigLIP, arXiv:2303.15343; the best of many places as evidence for the whole
picture is multiple-instance learning, arXiv:1411.6228 for captions' words on pictures.
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow.tokenizer.contrastive import (
    ALPHABET,
    PAD,
    SPECIAL,
    ImageTextModel,
    Vocabulary,
    as_batch,
)
from tokenflow.training.world import World

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
        dense: Weight of the second term; 0 leaves it out.
        pieces: Pieces of each caption that enter the second term in a step.

    Raises:
        ValueError: A value is out of its range.
    """

    encoder: dict[str, Any] = field(
        default_factory=lambda: {
            "kind": "clip",
            "width": 128,
            "layers": 4,
            "heads": 4,
            "patch": 8,
            "image_size": 64,
        }
    )
    image_size: int = 64
    width: int = 128
    text: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 1024
    captions: int = 20_000
    dense: float = 1.0
    pieces: int = 8

    def __post_init__(self) -> None:  # noqa: D105
        low = {"image_size": 1, "width": 1, "captions": 1, "pieces": 1, "dense": 0}
        low["vocabulary"] = ALPHABET + len(SPECIAL)
        for name, least in low.items():
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"train: teacher.{name} must be at least {least}, got "
                    f"{getattr(self, name)}"
                )
        if self.vocabulary >= 1 << BITS:
            raise ValueError(
                f"train: teacher.vocabulary must be below {1 << BITS}, got "
                f"{self.vocabulary}"
            )


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


class ContrastiveTask:
    """What the training loop is given to train a teacher.

    Args:
        config: Sizes and weights of the terms.
        captions: What the vocabulary is learned from.
        heldout: Samples with "image" and "caption" that no training sees; they are
            what `judge` looks at.
        seed: Of the first weights.
        device: Where the model is.
    """

    def __init__(
        self,
        config: TeacherConfig,
        captions: Iterable[str],
        heldout: Sequence[Mapping[str, Any]],
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.heldout = config, heldout
        vocabulary = Vocabulary.learn(captions, config.vocabulary)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = ImageTextModel(
                config.encoder, vocabulary, config.image_size, config.width, config.text
            )
        self.model.to(device)
        self.parts: dict[str, nn.Module] = {"teacher": self.model}
        self.kept: dict[str, nn.Module] = {}

    def loss(
        self, part: str, batch: Mapping[str, Any], moment: Any
    ) -> dict[str, Tensor]:
        """Return both terms and their weighted sum as "loss".

        Args:
            part: "teacher", the only one.
            batch: "image" [n, 3, H, W] uint8 and "caption", n texts.
            moment: Of the loop: its `world` and its `rng(*names)`.
        """
        model, world, config = self.model, moment.world, self.config
        images = batch["image"]
        texts = read_texts(
            batch["caption"],
            model.vocabulary,
            model.text_encoder.length,
            config.pieces,
            lambda caption: moment.rng("pieces", caption),
        ).to(images.device)
        pictures, patches = model.encode_images(images.float().div(127.5).sub(1))
        captions, keys = self._captions(texts, world)
        belongs = texts.caption_keys[:, None] == keys
        terms = {
            "captions": sigmoid_loss(
                pictures, captions, belongs, model.scale, model.bias
            )
        }
        total = terms["captions"]
        if config.dense:
            pieces, keys = self._pieces(texts, world)
            belongs = (texts.all_keys[:, None] == keys[:, None]).any(2)
            terms["pieces"] = dense_loss(
                patches, pieces, belongs, model.patch_scale, model.patch_bias
            )
            total = total + config.dense * terms["pieces"]
        return {"loss": total, **terms}

    def _captions(self, texts: Texts, world: World) -> tuple[Tensor, Tensor]:
        """Return the vectors and keys of all processes' captions, each once."""
        vectors = gather(self.model.encode_tokens(texts.captions), world)
        keys = world.gather(texts.caption_keys)
        once, _ = _first_of_each(keys)
        return vectors[once], keys[once]

    def _pieces(self, texts: Texts, world: World) -> tuple[Tensor, Tensor]:
        """Return the vectors and keys of all processes' pieces, each piece once."""
        once, where = _first_of_each(texts.keys)
        vectors = gather(self.model.encode_tokens(texts.pieces[once])[where], world)
        keys = world.gather(texts.keys)
        once, _ = _first_of_each(keys)
        once = once[keys[once] != 0]
        return vectors[once], keys[once]

    def after_step(self, moment: Any, optimizers: Any) -> dict[str, float]:
        """Return the temperatures as they are."""
        model = self.model
        return {
            "temperature": model.scale.exp().item(),
            "patch_temperature": model.patch_scale.exp().item(),
        }

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """Look at the held-out samples.

        Returns:
            "retrieval": the share of pictures whose own caption is the most similar
            one of all; "pieces": how well patches tell which pieces belong to a
            picture, the mean of the shares that are right among those that do and
            among those that do not (0.5 is chance).
        """
        model = self.model.eval()
        captions = [str(sample["caption"]) for sample in self.heldout]
        known = sorted(set(captions))
        vectors = model.encode_texts(known)
        texts = read_texts(
            captions, model.vocabulary, model.text_encoder.length, 4, random.Random
        ).to(vectors.device)
        once, _ = _first_of_each(texts.keys)
        once = once[texts.keys[once] != 0]
        keys, pieces = texts.keys[once], model.encode_tokens(texts.pieces[once])
        found, right, wrong = 0, [], []
        for start in range(0, len(captions), JUDGED):
            here = slice(start, start + JUDGED)
            batch = model.batch([sample["image"] for sample in self.heldout[here]])
            pictures, patches = model.encode_images(batch)
            best = (pictures @ vectors.T).argmax(1).tolist()
            found += sum(
                known[i] == c for i, c in zip(best, captions[here], strict=True)
            )
            logits = dense_logits(patches, pieces, model.patch_scale, model.patch_bias)
            belongs = (texts.all_keys[here, None] == keys[:, None]).any(2)
            right.append(_row_mean((logits > 0).float(), belongs))
            wrong.append(_row_mean((logits <= 0).float(), ~belongs))
        model.train()
        share = (torch.cat(right).mean() + torch.cat(wrong).mean()) / 2
        return {"retrieval": found / len(captions), "pieces": share.item()}

    def finish(self, folder: Path) -> None:
        """Write the teacher to folder/teacher."""
        self.model.save_pretrained(folder / "teacher")


def _first_of_each(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each distinct key is first, and for every key which it is."""
    distinct, which = torch.unique(keys, return_inverse=True)
    places = torch.arange(len(keys), device=keys.device)
    first = torch.full_like(distinct, len(keys)).scatter_reduce_(
        0, which, places, "amin"
    )
    return first, which
