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
from tokenflow.generation.prompts import common_padding
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
    generator: sampling.Generators = None,
) -> Iterator[Tensor]:
    """Yield each scale's tokens.

    Args:
        model: Whose weights and schedule.
        wanted: [B, P] int64, prompts as `prompts.prefix_ids` makes them.
        unwanted: The same for what guidance leads away from; None without guidance.
        guidance: t of the last scale of the model's schedule.
        passes: (k, p) of each look at a scale; the first scale has one.
        scales: The first few of the model's.
        generator: For the draws; several share the rows evenly.

    Yields:
        [B, sh·sw] int64 in [0, K), scale after scale.
    """
    rows = wanted if unwanted is None or not guidance else torch.cat([wanted, unwanted])
    counts, n = token_counts(scales), len(model.scales)
    sequence = _Sequence(model, rows, len(wanted), sum(counts) - 1)

    def draw(hidden: Tensor, number: int, limits: tuple[int, float]) -> Tensor:
        strength = sampling.guidance_at(number, n, guidance)
        logits = model.image_logits(hidden if strength else hidden[: len(wanted)])
        parts = logits.split(len(wanted))
        logits = sampling.guide(parts[0], parts[-1], strength)
        before = model.config.image_start
        return sampling.draw(logits, *limits, generator, before=before)

    drawn = [draw(sequence.last, 0, passes[0])]
    while len(drawn) < counts[0]:
        hidden = sequence.look(model.entries(drawn[-1]), 0)
        sequence.settle()
        drawn.append(draw(hidden, 0, passes[0]))
    indices = torch.cat(drawn, dim=1)
    yield indices
    total = inputs.as_map(model.entries(indices), scales[0])
    for number, scale in enumerate(scales[1:], 1):
        before = total = inputs.enlarge(total, scale)
        for turn, limits in enumerate(passes):
            hidden = sequence.look(inputs.as_rows(total), number)
            indices = draw(hidden, number, limits)
            total = before + inputs.as_map(model.entries(indices), scale)
            if not turn and len(passes) > 1 and number + 1 < len(scales):
                sequence.cache.hold()
        sequence.settle()
        yield indices


class _Sequence:
    """Prompts and the image positions behind them, as far as they are known.

    Args:
        model: Whose layers run.
        rows: [R, P] int64, wanted and unwanted prompts.
        batch: How many of them are wanted; all others see the same pictures.
        room: Image positions to come.
    """

    def __init__(
        self, model: "TokenFlowForGeneration", rows: Tensor, batch: int, room: int
    ) -> None:
        self.model, self.copies, self.width = model, len(rows) // batch, rows.shape[1]
        prompts, order = rows.unique(dim=0, return_inverse=True)
        self.places = model.places(self.width, self.width + room)
        last, kept, real = _read_prompts(model, prompts, self.places)
        self.last = last[order, None]  # [R, 1, width], what predicts the first token
        self.cache = Cache(kept, order, room)
        self.mask = None if real.all() else real[order, None, None]
        self.known = 0  # image positions

    def look(self, rows: Tensor, number: int) -> Tensor:
        """Run the next positions, of scale `number`: [B, n, C] → [R, n, width]."""
        start, end = self.known, self.known + rows.shape[1]
        x = self.model.embed_image(rows, number, start + 1)
        where = self.places[:, self.width + start : self.width + end]
        seen = None if self.mask is None else F.pad(self.mask, (0, end), value=True)
        x = x.repeat(self.copies, 1, 1)
        return self.model.llama(x, where, seen, self.cache)

    def settle(self) -> None:
        """Go on behind the positions that were looked at."""
        self.known += self.cache.pending
        self.cache.settle()


def _read_prompts(
    model: "TokenFlowForGeneration", prompts: Tensor, places: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
    """Run prompts [U, P]; return the last position's output, all keys, what is real.

    Padding that all of them have is left out: nobody looks at it. Everything else
    stays at its place.
    """
    width = prompts.shape[1]
    cut = common_padding(prompts, model.config.pad_id)
    prompts = prompts[:, cut:]
    real = prompts != model.config.pad_id
    back = torch.ones(width - cut, width - cut, dtype=torch.bool, device=real.device)
    seen = (back.tril() & real[:, None])[:, None]
    kept: list[tuple[Tensor, Tensor]] = []
    out = model.llama(
        model.embed_prompt(prompts), places[:, cut:width], seen, kept=kept
    )
    return out[:, -1], kept, real
