"""Keeping a codebook alive: how entries start, learn, are counted and are woken.

An entry that no vector is near gets no gradient, so a codebook collapses: most pictures
end up in a few entries, and the others stay dead. Against that: entries may start on
vectors that occur (drawn, or centres of them), may learn as running means instead of by
gradient, and those unused for a number of steps are set onto current vectors. Both
halves of an entry always move together, so that the pair names something that occurs.
Counts, means and draws are over the vectors of all processes in the order of their
pictures, and come out the same for any number of them.
Source: running means, arXiv:1711.00937, appendix A.1; starting on centres, as the
published training code can; waking, after Jukebox, arXiv:2005.00341, section 3.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow.evaluation.metrics import perplexity
from tokenflow.tokenizer.scales import token_counts
from tokenflow.training.distinct import distinct
from tokenflow.training.kmeans import Metric, kmeans
from tokenflow.training.rows import Rows
from tokenflow.training.task import Moment
from tokenflow.training.world import World
from tokenflow_ext import code_histogram
from tokenflow_ext.nn import PyramidQuantizer
from tokenflow_ext.nn.books import Observed

if TYPE_CHECKING:  # it takes seconds to import
    from tokenflow.tokenizer.model import TokenFlowTokenizer

Say = Callable[[str], None]
NEVER = 1 << 30  # steps since an entry was used that never was
SMOOTHING = 1e-5  # of the sizes that running sums are divided by
NOISE = 0.1  # length of what keeps entries set onto one vector apart


@dataclass(frozen=True)
class CodebookConfig:
    """How the two books start, learn and are kept in use.

    Args:
        learning: "gradient": entries follow the gradient of the vq loss. "ema": an
            entry is the running mean of its vectors; the books then take no gradient
            and no optimizer moves them.
        decay: Share of the old mean kept at each step of "ema".
        start: "random": as the model made them. "vectors": every entry on a cell of
            the features. "kmeans": entries on the centres of those cells.
        start_at: Steps before which that is done; a later one finds better features.
        kmeans_rounds: How often centres move.
        kmeans_vectors: Most cells that centres are made of, over all processes.
        revive_after: Steps without use that make an entry dead; 0 wakes none.
        revive_most: Most entries set anew in one step.
        revive_until: Share of the training after which that stops.
        window: Steps that usage looks back on; perplexity weights old ones less.
        warn_below: Share of the entries in use that calls for a warning.
        warn_every: Steps from one look at that to the next; 0 for never.
        same_within: Distance in which `CodebookHealth.judge` takes halves for one.

    Raises:
        ValueError: A value is out of its range.
    """

    learning: str = "gradient"
    decay: float = 0.99
    start: str = "random"
    start_at: tuple[int, ...] = (0,)
    kmeans_rounds: int = 10
    kmeans_vectors: int = 262144
    revive_after: int = 128
    revive_most: int = 64
    revive_until: float = 0.8
    window: int = 100
    warn_below: float = 0.2
    warn_every: int = 1000
    same_within: float = 0.05

    def __post_init__(self) -> None:  # noqa: D105
        def need(name: str, holds: bool, words: str) -> None:
            if not holds:
                raise ValueError(
                    f"train: codebook.{name} must {words}, got {getattr(self, name)!r}"
                )

        object.__setattr__(self, "start_at", tuple(self.start_at))
        learnings, starts = ("gradient", "ema"), ("random", "vectors", "kmeans")
        need("learning", self.learning in learnings, f"be one of {list(learnings)}")
        need("start", self.start in starts, f"be one of {list(starts)}")
        need("start_at", all(s >= 0 for s in self.start_at), "hold steps from 0 on")
        need("decay", 0 <= self.decay < 1, "be in [0, 1)")
        for name in ("kmeans_rounds", "revive_after", "warn_every"):
            need(name, getattr(self, name) >= 0, "be at least 0")
        for name in ("kmeans_vectors", "revive_most", "window"):
            need(name, getattr(self, name) >= 1, "be at least 1")
        for name in ("revive_until", "warn_below"):
            need(name, 0 <= getattr(self, name) <= 1, "be in [0, 1]")
        need("same_within", self.same_within >= 0, "be at least 0")


class CodebookHealth(nn.Module):
    """Watches a quantizer in training and keeps its entries in use.

    One step of training, on every process:

        if health.starts(moment.step):
            with torch.no_grad(), health.watch():
                model(images)               # this process's share of the pictures
            health.start(optimizer, moment)
        with health.watch():
            losses = model(images)          # once, or once per micro batch, in order
        ...                                 # backward, the optimizer's step
        facts = health.after_step(optimizer, moment)

    With learning="ema" the books are made to require no gradient, so the vq loss is a
    number without effect and an optimizer leaves them alone, whenever it was made.
    What is counted and averaged is in the state dict; the books are the quantizer's.

    Args:
        quantizer: In training. Its schedule names the scales that are told apart.
        config: What to do.
        say: Takes a warning.
    """

    def __init__(
        self,
        quantizer: PyramidQuantizer,
        config: CodebookConfig,
        say: Say = lambda line: None,
    ) -> None:
        super().__init__()
        # In a list, so that its parameters are not ours.
        self._quantizer, self.config, self.say = [quantizer], config, say
        self._seen: list[Observed] = []
        self.metric = Metric(
            (quantizer.semantic_width, quantizer.pixel_width),
            quantizer.pixel_weight,
            quantizer.normalize,
        )
        books = quantizer.books()
        entries, device = quantizer.num_codes, books[0].device
        told = (1 + len(quantizer.scales), entries)  # all scales together, then each
        self.register_buffer("idle", torch.zeros(entries, dtype=torch.int32))
        self.register_buffer("unseen", torch.full(told, NEVER, dtype=torch.int32))
        self.register_buffer("shares", torch.zeros(told))
        if config.learning == "ema":
            for book in books:
                book.requires_grad_(False)
            self.register_buffer("sizes", torch.ones(entries))
            self.register_buffer("sums", torch.cat(books, dim=1).float())
        self.to(device)

    @property
    def quantizer(self) -> PyramidQuantizer:
        """What is watched."""
        return self._quantizer[0]

    # what the forwards saw

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Take note of the quantizer's forwards while the block runs."""
        self.quantizer.observer = self._seen.append
        try:
            yield
        finally:
            self.quantizer.observer = None

    def _rows(self, world: World) -> tuple[Rows, Tensor]:
        """Return what was compared, picture after picture, and its indices [n]."""
        device = self.idle.device
        rows = [torch.zeros(0, sum(self.metric.widths), device=device)]
        indices = [torch.zeros(0, dtype=torch.int64, device=device)]
        for seen in self._seen:
            found = (seen.indices >= 0).flatten()  # the others are not finite
            rows.append(seen.rows.flatten(0, 1)[found])
            indices.append(seen.indices.flatten()[found])
        return Rows(torch.cat(rows), world), torch.cat(indices)

    def _features(self, world: World) -> Rows:
        """Return every cell of the features, as it would be compared."""
        rows = [torch.zeros(0, sum(self.metric.widths), device=self.idle.device)]
        rows += [
            s.features.float().permute(0, 2, 3, 1).flatten(0, 2) for s in self._seen
        ]
        every = torch.cat(rows)
        return Rows(self.metric.read(every[every.isfinite().all(dim=1)]), world)

    # before a step

    def starts(self, step: int) -> bool:
        """Say whether `start` is due before that step."""
        return self.config.start != "random" and step in self.config.start_at

    @torch.no_grad()
    def start(self, optimizer: torch.optim.Optimizer, moment: Moment) -> None:
        """Set every entry by the features seen since the last call of ours.

        The cells of the final grid are taken, as if there were no other scale: what
        earlier scales leave over depends on the entries, and when all are replaced at
        once, that no longer occurs.

        Args:
            optimizer: Its memory of the books is cleared.
            moment: The step that comes next.

        Raises:
            ValueError: No features were seen.
        """
        rng = moment.rng("codebook", "start")
        rows = self._features(moment.world)
        self._seen.clear()
        entries = self.quantizer.num_codes
        if self.config.start == "kmeans":
            rows = rows.some(self.config.kmeans_vectors, rng)
            rounds = self.config.kmeans_rounds
            values = kmeans(rows, self.metric, entries, rounds, rng)
        else:
            values = rows.pick(rows.sample(entries, rng))
            noise = torch.Generator().manual_seed(rng.getrandbits(62))
            away = torch.randn(values.shape, generator=noise).to(values)
            length = NOISE * values.norm(dim=1).mean() / values.shape[1] ** 0.5
            values = self.metric.placed(values + length * away, values)
        self._set(torch.arange(entries, device=values.device), values, optimizer)

    def _set(
        self, entries: Tensor, values: Tensor, optimizer: torch.optim.Optimizer
    ) -> None:
        """Make entries [m] anew with the given rows [m, D]: nothing is known of them.

        An optimizer's memory of a row is what it holds of a book's own length.
        """
        halves = self.metric.halves(values)
        for book, half in zip(self.quantizer.books(), halves, strict=True):
            book[entries] = half.to(book.dtype)
            for memory in optimizer.state.get(book, {}).values():
                if isinstance(memory, Tensor) and memory.shape[:1] == book.shape[:1]:
                    memory[entries] = 0
        if self.config.learning == "ema":
            self.sizes[entries], self.sums[entries] = 1.0, values.float()
        self.idle[entries] = 0
        self.unseen[:, entries], self.shares[:, entries] = NEVER, 0.0

    # after a step

    @torch.no_grad()
    def after_step(
        self, optimizer: torch.optim.Optimizer, moment: Moment
    ) -> dict[str, float]:
        """Count what was seen since the last call, and move and wake entries by it.

        Args:
            optimizer: That of the books; its memory of a woken entry is cleared.
            moment: The step that was made.

        Returns:
            "usage", the share of the entries used in the latest `window` steps, and
            "perplexity", as many entries as were used if all were used alike; both
            also for each scale, as "usage/8x8"; "revived", how many entries were set
            anew, and "dead", how many others are unused for `revive_after` steps (for
            `window` steps where that is 0).
        """
        self._count(moment.world)
        dead = self.idle >= (self.config.revive_after or self.config.window)
        dead = dead.nonzero().flatten()
        revives = (
            self.config.revive_after and moment.progress < self.config.revive_until
        )
        revived = 0
        if self.config.learning == "ema" or (revives and len(dead)):
            rows, indices = self._rows(moment.world)
            if self.config.learning == "ema" and rows.total:
                self._average(rows, indices)
            if revives:
                revived = self._revive(dead, rows, optimizer, moment)
        self._seen.clear()
        facts = self._facts()
        facts |= {"revived": float(revived), "dead": float(len(dead) - revived)}
        self._warn(facts, moment)
        return facts

    def _count(self, world: World) -> None:
        """Add the uses of each entry to the counters, in all and at each scale."""
        names = [None, *self.quantizer.scales]
        counts = torch.zeros_like(self.shares, dtype=torch.int64)
        present = counts.new_zeros(len(names), 1)
        for seen in self._seen:
            counts[0] += code_histogram(seen.indices, counts.shape[1])
            present[0] = 1
            parts = seen.indices.split(token_counts(seen.scales), dim=1)
            for pair, part in zip(seen.scales, parts, strict=True):
                if pair in names:
                    at = names.index(pair)
                    counts[at] += code_histogram(part, counts.shape[1])
                    present[at] = 1
        both = world.sum(torch.cat([counts, present], dim=1))
        counts, present = both[:, :-1], both[:, -1:] > 0
        fade = torch.where(present, 1 - 1 / self.config.window, 1.0)
        self.shares.mul_(fade).add_(counts)
        self.unseen.add_(present.int()).clamp_(max=NEVER)
        self.unseen[counts > 0] = 0
        self.idle.add_(1).masked_fill_(counts[0] > 0, 0)

    def _average(self, rows: Rows, indices: Tensor) -> None:
        """Move every entry used to the running mean of its vectors."""
        keep, entries = self.config.decay, len(self.sizes)
        counts = rows.world.sum(code_histogram(indices, entries))
        self.sizes.mul_(keep).add_(counts, alpha=1 - keep)
        self.sums.mul_(keep).add_(rows.sums(indices, entries).float(), alpha=1 - keep)
        total = self.sizes.double().sum()
        smooth = total * (self.sizes + SMOOTHING) / (total + entries * SMOOTHING)
        before = torch.cat(self.quantizer.books(), dim=1).float()
        means = self.metric.placed(self.sums / smooth[:, None], before)
        used = counts > 0
        halves = self.metric.halves(means)
        for book, half in zip(self.quantizer.books(), halves, strict=True):
            book[used] = half[used].to(book.dtype)

    def _revive(
        self,
        dead: Tensor,
        rows: Rows,
        optimizer: torch.optim.Optimizer,
        moment: Moment,
    ) -> int:
        """Set some of the dead entries [m] onto vectors; returns how many."""
        rng = moment.rng("codebook", "revive")
        many = min(len(dead), self.config.revive_most, rows.total)
        if not many:
            return 0
        chosen = torch.tensor(rng.sample(range(len(dead)), many), device=dead.device)
        self._set(dead[chosen], rows.pick(rows.sample(many, rng)), optimizer)
        return many

    def _facts(self) -> dict[str, float]:
        """Return usage and perplexity, in all and by scale."""
        usage = (self.unseen < self.config.window).float().mean(dim=1).tolist()
        facts = {"usage": usage[0], "perplexity": perplexity(self.shares[0])}
        for at, (height, width) in enumerate(self.quantizer.scales, start=1):
            facts[f"usage/{height}x{width}"] = usage[at]
            facts[f"perplexity/{height}x{width}"] = perplexity(self.shares[at])
        return facts

    def _warn(self, facts: dict[str, float], moment: Moment) -> None:
        """Say so where few entries are in use, unless few could be."""
        every, entries = self.config.warn_every, self.quantizer.num_codes
        if not every or (moment.step + 1) % every or moment.world.rank:
            return
        possible = min(1.0, self.shares[0].sum().item() / entries)
        if facts["usage"] >= self.config.warn_below * possible:
            return
        self.say(
            f"codebook: {facts['usage']:.1%} of {entries} entries were used in the "
            f"latest {self.config.window} steps (as evenly as "
            f"{facts['perplexity']:.0f} entries would be), which is below warn_below "
            f"= {self.config.warn_below:.0%}; {self._advice()}"
        )

    def _advice(self) -> str:
        """Name what the config leaves untried."""
        advice = []
        if not self.config.revive_after:
            advice.append("codebook.revive_after above 0 wakes unused entries")
        if self.config.start == "random":
            advice.append("codebook.start: kmeans begins on vectors that occur")
        if self.config.learning == "gradient" and self.quantizer.entropy_ratio == 0:
            advice.append("the model's entropy_weight above 0 evens out usage")
        return "; ".join(advice) or "look at the features: they may all be alike"

    # now and then

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """Return how many different halves are effectively in use.

        Returns:
            "semantic_entries" and "pixel_entries": the perplexity of the latest usage
            with halves nearer than `same_within` taken for one, so that a book whose
            rows have fallen together shows, though the pairs are all used.
        """
        found = {}
        names = "semantic_entries", "pixel_entries"
        for name, book in zip(names, self.quantizer.books(), strict=True):
            rows = F.normalize(book, dim=1) if self.quantizer.normalize else book
            found[name] = distinct(rows, self.shares[0], self.config.same_within)
        return found


@torch.no_grad()
def centre_features(
    model: "TokenFlowTokenizer", images: Tensor, world: World | None = None
) -> None:
    """Start with features of mean 0 and, in each half, of about unit length.

    New networks say nearly the same of every picture. Quantized, that is one entry,
    and training spends its first steps on telling pictures apart; here the last layer
    of either encoder is shifted and scaled once, so that they are apart at once.

    Args:
        model: Not yet trained.
        images: [B, 3, H, W] float in [-1, 1]; over all processes a few dozen.
        world: The processes whose pictures count; None where `images` are all.
    """
    world = world or World()
    features = model.features(images).double()
    cells = features.numel() // features.shape[1] * world.size
    mean = world.sum(features.sum(dim=(0, 2, 3))) / cells
    squares = (features - mean[:, None, None]).square().sum(dim=(0, 2, 3))
    spread = (world.sum(squares) / (cells - 1)).sqrt()
    width = model.config.semantic_dim
    layers = []
    if model.semantic_head is not None:
        layers.append((model.semantic_head[-1], slice(None, width)))
    if model.quant_conv is not None:
        layers.append((model.quant_conv, slice(width, None)))
    for layer, half in layers:
        count = layer.weight.shape[0]
        scale = 1 / (spread[half].clamp_min(1e-6) * count**0.5)
        layer.bias.copy_((layer.bias - mean[half]) * scale)
        layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.ndim - 1)).float())
