"""From prompts to tokens, scale by scale, with nothing computed twice.

The published loop runs the whole sequence again for every pass. Here keys and values of
the prompt and of each scale's first pass are kept, since no later input changes them;
further passes over a scale look at them and leave nothing behind. Equal prompts, and
the negative prompt of all rows, are run once. At the first scale guidance weighs
nothing, so no logits of the negative half are made. The tokens are the published ones.
Source: TokenFlow, arXiv:2412.03069, section 3.4; the arithmetic of the published code.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow.generation import inputs, sampling
from tokenflow.generation.llama import Cache
from tokenflow.tokenizer.scales import Scales, token_counts

if TYPE_CHECKING:
    from tokenflow.generation.model import TokenFlowForGeneration


def draw_scales(
    model: "TokenFlowForGeneration",
    wanted: Tensor,
    unwanted: Tensor | None,
    *,
    guidance: float,
    passes: list[tuple[int, float]],
    scales: Scales,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield each scale's tokens.

    Args:
        model: Whose weights and schedule.
        wanted: [B, P] int64, prompts as `prompts.prefix_ids` makes them.
        unwanted: The same for what guidance leads away from; None without guidance.
        guidance: t of the last scale of the model's schedule.
        passes: (k, p) of each look at a scale; the first scale has one.
        scales: The first few of the model's.
        generator: For the draws.

    Yields:
        [B, sh·sw] int64 in [0, K), scale after scale.
    """
    if not guidance:
        unwanted = None
    rows = wanted if unwanted is None else torch.cat([wanted, unwanted])
    prompts, order = rows.unique(dim=0, return_inverse=True)
    last, kept, real = _read_prompts(model, prompts)
    batch, width = wanted.shape
    logits = sampling.guide(model.image_logits(last[order[:batch], None]), None, 0)
    indices = _draw(model, logits, passes[0], generator)
    yield indices
    counts, n = token_counts(scales), len(model.scales)
    cache = Cache(kept, order, sum(counts[1:]))
    mask = None if real.all() else real[order, None, None]
    total = inputs.as_map(model.entries(indices), scales[0])
    start = 1  # image positions so far, the prompt's last included
    for number, (scale, count) in enumerate(zip(scales, counts, strict=True)):
        if not number:
            continue
        strength = sampling.guidance_at(number, n, guidance)
        before = total = inputs.enlarge(total, scale)
        places = width - 1 + torch.arange(start, start + count, device=rows.device)
        seen = None if mask is None else F.pad(mask, (0, start - 1 + count), value=True)
        for turn, limits in enumerate(passes):
            x = model.embed_image(inputs.as_rows(total), number, start)
            x = x.repeat(len(rows) // batch, 1, 1)
            logits = model.image_logits(model.llama(x, places, seen, cache))
            logits = sampling.guide(logits[:batch], logits[batch:], strength)
            indices = _draw(model, logits, limits, generator)
            total = before + inputs.as_map(model.entries(indices), scale)
            if not turn and len(passes) > 1 and number + 1 < len(scales):
                cache.hold()
        cache.settle()
        start += count
        yield indices


def _read_prompts(
    model: "TokenFlowForGeneration", prompts: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
    """Run prompts [U, P]; return the last position's output, all keys, what is real.

    Padding that all of them have is left out: nobody looks at it. Everything else
    stays at its place.
    """
    width = prompts.shape[1]
    real = prompts != model.config.pad_id
    cut = int(real.any(dim=0).int().argmax())
    prompts, real = prompts[:, cut:], real[:, cut:]
    back = torch.ones(width - cut, width - cut, dtype=torch.bool, device=real.device)
    seen = (back.tril() & real[:, None])[:, None]
    kept: list[tuple[Tensor, Tensor]] = []
    places = torch.arange(cut, width, device=prompts.device)
    out = model.llama(model.embed_prompt(prompts), places, seen, kept=kept)
    return out[:, -1], kept, real


def _draw(
    model: "TokenFlowForGeneration",
    logits: Tensor,
    limits: tuple[int, float],
    generator: torch.Generator | None,
) -> Tensor:
    return sampling.draw(logits, *limits, generator, before=model.config.image_start)
