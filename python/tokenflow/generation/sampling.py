"""Logits to tokens: guidance, top-k, top-p, one draw.

Everything is float32. Published settings are lists of (k, p): the first is for the
first look at a scale, each further one for a second look at the same scale.
Source: TokenFlow, arXiv:2412.03069, section 3.4 and table 6; the arithmetic of the
published code (guidance grows over the scales, and is written (1 + t)·c − t·u).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Refinement = Sequence[tuple[int, float]]
Generators = torch.Generator | Sequence[torch.Generator] | None
ONE_PASS: Refinement = ((600, 0.6),)
TWO_PASSES: Refinement = ((1200, 0.8), (1, 0.0))
THREE_PASSES: Refinement = ((1200, 0.8), (100, 0.8), (1, 0.0))
PASSES = {1: ONE_PASS, 2: TWO_PASSES, 3: THREE_PASSES}


def guidance_at(scale: int, scales: int, guidance: float) -> float:
    """Return t of scale number `scale`: 0 at the first, `guidance` at the last."""
    return guidance * scale / (scales - 1) if scales > 1 else guidance


def guide(wanted: Tensor, unwanted: Tensor | None, strength: float) -> Tensor:
    """Return (1 + t)·wanted − t·unwanted in float32; `unwanted` is unread at t = 0.

    Args:
        wanted, unwanted: [B, n, K] logits.
        strength: t.
    """
    if not strength or unwanted is None:
        return wanted.float()
    return (1 + strength) * wanted.float() - strength * unwanted.float()


def keep(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return logits with −∞ for what may not be drawn.

    First what is below the k-th largest goes (equals of it stay), then, from the
    smallest up, what makes up at most 1 − p of the probability that is left. The
    largest always stays.

    Args:
        logits: [..., K] float32.
        top_k: 0 keeps everything.
        top_p: 0 keeps everything.
    """
    if top_k > 0:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p > 0:
        rising, order = logits.sort(dim=-1, descending=False)
        out = rising.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        out[..., -1] = False
        logits = logits.masked_fill(out.scatter(-1, order, out), -math.inf)
    return logits


def draw(
    logits: Tensor,
    top_k: int = 0,
    top_p: float = 0.0,
    generator: Generators = None,
    before: int = 0,
) -> Tensor:
    """Draw one token for each row of logits, with one call of `torch.multinomial`.

    Args:
        logits: [B, n, K] float32, of the ids that may be drawn.
        top_k, top_p: See `keep`.
        generator: On any device; the draw is made there, so that one seed gives the
            same tokens wherever the model runs. Several share the batch evenly, one
            call each.
        before: Ids in front of these that are never drawn. They take part in the draw
            with probability 0, which makes the generator's stream that of the whole
            vocabulary.

    Returns:
        [B, n] int64 in [0, K).

    Raises:
        ValueError: A logit is NaN, or none of a row is finite.
    """
    odds = keep(logits, top_k, top_p).softmax(dim=-1)
    if not odds.isfinite().all():
        raise ValueError(
            "draw: logits must be finite, got NaN; the model's weights or its dtype "
            "are the usual cause"
        )
    several = generator if isinstance(generator, list | tuple) else [generator]
    found = []
    for part, one in zip(odds.chunk(len(several)), several, strict=True):
        part = F.pad(part.flatten(0, -2), (before, 0))
        part = part if one is None else part.to(one.device)
        found.append(torch.multinomial(part, 1, generator=one).to(logits.device))
    return torch.cat(found).view(logits.shape[:-1]) - before


def check(guidance_scale: float, refinement: Refinement) -> list[tuple[int, float]]:
    """Return the passes, checked.

    Raises:
        ValueError: There is none, or a k, p or the guidance is out of range.
    """
    if not guidance_scale >= 0 or math.isinf(guidance_scale):
        raise ValueError(f"generate: guidance_scale must be ≥ 0, got {guidance_scale}")
    passes = list(refinement)
    if not passes:
        raise ValueError("generate: refinement must have at least one (k, p), got none")
    for entry in passes:
        pair = entry if isinstance(entry, list | tuple) and len(entry) == 2 else (-1, 0)
        if not (pair[0] >= 0 and float(pair[0]).is_integer() and 0 <= pair[1] <= 1):
            raise ValueError(
                "generate: refinement must be pairs (k, p), one for each look, with a "
                f"whole k ≥ 0 and p in [0, 1], got {entry!r}"
            )
    return [(int(k), float(p)) for k, p in passes]
