"""Learning that knows which entries are near each other.

A token names the nearest of thousands of entries, and often others are nearly as near:
which of them it became says little about the picture, and a model that must learn it
spends most of its capacity there. `quantize_near` shares the probability of a target
among the nearest entries, by how near they are: pictures whose tokens are drawn from
such shares look alike as long as the temperature is small. The tokens that are read may
be taken under noise: who draws a picture errs, and so learns that later scales can make
that good. `head_rows` begins the rows of a head near each other where entries are, so
that their geometry is there from the first step.
Source: ours; shares are label smoothing (arXiv:1512.00567) along the distances of
quantization; later scales correct errors in Infinity, arXiv:2412.04431.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow.tokenizer.quantizer import Quantizer
from tokenflow.tokenizer.scales import token_counts

ROWS = 4096  # whose distances to all entries are there at a time


@dataclass(frozen=True)
class Near:
    """The tokens of pictures, and what is near what they stand for."""

    indices: Tensor  # [B, N] int64
    near: Tensor  # [B, N, count] int64, entries, the nearest first
    shares: Tensor  # [B, N, count] float32, of 1


@torch.no_grad()
def quantize_near(
    quantizer: Quantizer,
    features: Tensor,
    count: int,
    temperature: float,
    noise: Tensor | None = None,
) -> Near:
    """Quantize features and say what else each token could have been.

    Args:
        quantizer: The tokenizer's.
        features: [B, Ds + Dp, h, w] float32, what is quantized.
        count: Entries of a target, in [1, K].
        temperature: Above 0: an entry's share is proportional to exp(−d² / 2T), d being
            its distance from what was quantized, as quantization measures it.
        noise: [B, N, Ds + Dp] float32, added to what is compared with the entries (of
            unit length in each half, where the books are normalised) when a token is
            taken, and not when its target is: later targets make good what it changed.
            None for none: the tokens are the tokenizer's own, bit for bit.

    Returns:
        All scales, coarse to fine.
    """
    scales, width = quantizer.scales, quantizer.semantic_width
    counts = token_counts(scales)
    if noise is None:
        tokens = quantizer.quantize(features)[0].split(counts, 1)
    else:
        strays = noise.split(counts, 1)
    book, weights = _weighed(quantizer)
    offset = (book.square() * weights).sum(1) / 2
    indices, entries, shares, rest = [], [], [], features
    for number, scale in enumerate(scales):
        rows = F.adaptive_avg_pool2d(rest, scale).flatten(2).transpose(1, 2)
        if quantizer.normalize:
            halves = rows[..., :width], rows[..., width:]
            rows = torch.cat([F.normalize(half, dim=-1) for half in halves], dim=-1)
        flat = (rows * weights).flatten(0, 1).split(ROWS)
        best = [torch.addmm(-offset, part, book.T).topk(count) for part in flat]
        closeness, names = (torch.cat(parts) for parts in zip(*best, strict=True))
        entries.append(names.unflatten(0, rows.shape[:2]))
        shares.append((closeness / temperature).softmax(-1).view_as(entries[-1]))
        if noise is None:
            taken = tokens[number]
        else:
            moved = (rows + strays[number]).transpose(1, 2).unflatten(2, scale)
            taken = quantizer.quantize(moved, [scale])[0]
        indices.append(taken)
        found = quantizer.entries(taken).transpose(1, 2).unflatten(2, scale)
        rest = rest - F.interpolate(found, rest.shape[-2:], mode="bicubic")
    return Near(torch.cat(indices, 1), torch.cat(entries, 1), torch.cat(shares, 1))


@torch.no_grad()
def head_rows(quantizer: Quantizer, rows: Tensor, size: float) -> Tensor:
    """Return rows of a head for each entry, near each other where the entries are.

    The entries, less their mean, are turned at random into the width of the head, or
    projected where that is less than theirs.

    Args:
        quantizer: The tokenizer's.
        rows: [K, width], what the head would begin with.
        size: The norm of all rows, as a multiple of what it was.
    """
    book, weights = _weighed(quantizer)
    turn = torch.nn.init.orthogonal_(rows.new_empty(book.shape[1], rows.shape[1]))
    made = ((book - book.mean(0)) * weights.sqrt()).to(rows) @ turn
    return made * (size * rows.norm() / made.norm().clamp_min(1e-12))


def _weighed(quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Return all entries [K, Ds + Dp], and what each number weighs in a distance."""
    one, _ = quantizer.books()  # [K, 0] where it has no such half
    book = quantizer.entries(torch.arange(len(one), device=one.device))
    weights = torch.ones_like(book[0])
    weights[quantizer.semantic_width :] = quantizer.pixel_weight
    return book, weights
