"""What pictures and captions learn from each other: two losses, over all processes.

The first is SigLIP's: every picture is held against every caption of the batch, and a
sigmoid says for each pair whether the two belong together. The second is what makes
the patches mean something: pieces of captions (one to three neighbouring tokens, so
"red" and "red car") are held against patches. A piece belongs to a picture whose
caption has it, and what is judged is the best of the picture's patches, softly: the
one that shows the thing is the one that gets the gradient.

Several processes: the texts of all are gathered, with gradients, and each process
holds its own pictures against them. The mean over the processes of loss and gradient
is that of one process with the whole batch. Micro batches see their own texts only.
Sources: SigLIP, arXiv:2303.15343; the soft best of many places as evidence for the
whole picture, arXiv:1411.6228.
"""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow.tokenizer.contrastive import PAD, Vocabulary, as_batch
from tokenflow.training.world import World

LONGEST_PIECE = 3
BITS = 20  # of a token in the key of a piece; 3 · 20 fit an int64


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
    right = row_mean(F.logsigmoid(logits), belongs)
    wrong = row_mean(F.logsigmoid(-logits), ~belongs)
    return -(right + wrong).mean() / 2


def row_mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Return each row's mean of the chosen values, 0 where none is."""
    return (values * chosen).sum(1) / chosen.sum(1).clamp(min=1)


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
