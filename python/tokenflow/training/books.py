"""Wake entries that nobody uses.

An entry no feature is near gets no gradient and would stay dead. Entries unused for
a number of steps are set onto vectors that were just quantized, both halves
together, so that the pair names something that occurs.
Source: the idea is Jukebox's random restart, arXiv:2005.00341, section 3.
"""

import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.scales import token_counts


class Reviver:
    """Watches a tokenizer's quantizer and revives its unused entries.

    Args:
        model: The tokenizer in training.
        after: Steps without use that make an entry dead.
        most: Most entries revived in one step.
    """

    def __init__(self, model: TokenFlowTokenizer, after: int = 128, most: int = 64):
        self.model, self.after, self.most = model, after, most
        self.books = model.quantizer.books()
        size, device = self.books[0].shape[0], self.books[0].device
        self.idle = torch.zeros(size, dtype=torch.int64, device=device)
        self._seen: list[tuple[int, Tensor, Tensor]] = []  # part, features, indices
        self._thread = threading.local()
        model.quantizer.register_forward_hook(self._watch)

    def name_part(self, number: int) -> None:
        """Say which part of the batch this thread does next.

        Parts end in any order; what is picked from them must not depend on it.
        """
        self._thread.part = number

    def _watch(self, module: object, args: tuple, result: object) -> None:
        if self.model.training:
            part = getattr(self._thread, "part", 0)
            self._seen.append((part, args[0].detach(), result.indices.detach()))

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, seed: int, *, revive: bool) -> int:
        """Count what the forwards since the last call used, and revive entries.

        Returns how many were revived. Call after the optimizer's step. The
        optimizer's memory of a revived row is cleared. `revive=False` only counts.
        """
        seen, self._seen = self._seen, []
        self.idle += 1
        for *_, indices in seen:
            self.idle[indices.flatten()] = 0
        dead = (self.idle > self.after).nonzero().flatten()
        if not revive or not seen or not len(dead):
            return 0
        rng = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(dead), generator=rng)[: self.most]
        dead = dead[order.to(dead.device)]
        self._set(dead, seen, optimizer, rng)
        return len(dead)

    @torch.no_grad()
    def fill(self, optimizer: torch.optim.Optimizer, seed: int) -> None:
        """Set every entry onto vectors of the forwards since the last `step`.

        Random entries are so far from the first features that hardly anything gets
        through them; a few fills early on save most of that time. A little noise
        keeps entries drawn from one vector apart.
        """
        rng = torch.Generator().manual_seed(seed)
        every = torch.arange(len(self.idle), device=self.idle.device)
        self._set(every, self._seen, optimizer, rng)
        for book in self.books:
            noise = torch.randn(book.shape, generator=rng).to(book.device)
            book.copy_(F.normalize(book + 0.1 * noise / book.shape[1] ** 0.5, dim=1))

    def _set(
        self,
        entries: Tensor,
        seen: list[tuple[int, Tensor, Tensor]],
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
    ) -> None:
        parts = [features for _, features, _ in sorted(seen, key=lambda s: s[0])]
        rows = torch.cat([quantized_rows(self.model, part) for part in parts])
        pick = torch.randint(len(rows), (len(entries),), generator=rng).to(rows.device)
        width = self.books[0].shape[1]
        halves = rows[pick, :width], rows[pick, width:]
        for book, half in zip(self.books, halves, strict=True):
            book[entries] = F.normalize(half, dim=1)
            for memory in optimizer.state.get(book, {}).values():
                if memory.shape == book.shape:
                    memory[entries] = 0
        self.idle[entries] = 0


@torch.no_grad()
def centre_features(model: TokenFlowTokenizer, images: Tensor) -> None:
    """Start with features of mean 0 and, in each half, of about unit length.

    New networks say nearly the same of every picture. Quantized, that is one entry,
    and training spends its first steps on telling pictures apart; here the last layer
    of either encoder is shifted and scaled once, so that they are apart at once.

    Args:
        model: Not yet trained.
        images: [B, 3, H, W] float in [-1, 1], a few dozen.
    """
    width = model.config.semantic_dim
    features = model.features(images).float()
    mean, spread = features.mean(dim=(0, 2, 3)), features.std(dim=(0, 2, 3))
    for layer, half in (
        (model.semantic_head[-1], slice(None, width)),
        (model.quant_conv, slice(width, None)),
    ):
        count = layer.weight.shape[0]
        scale = 1 / (spread[half].clamp_min(1e-6) * count**0.5)
        layer.bias.copy_((layer.bias - mean[half]) * scale)
        layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))


@torch.no_grad()
def quantized_rows(model: TokenFlowTokenizer, features: Tensor) -> Tensor:
    """Return what each token stands for: the pooled residuals of all scales.

    Args:
        model: Its schedule and books are used.
        features: [B, Ds + Dp, h, w].

    Returns:
        [B · L, Ds + Dp] float32, scale after scale, not normalised.
    """
    scales = model.quantizer.scales
    rest, rows = features.float(), []
    indices, _ = model.quantizer.quantize(rest, scales)
    parts = indices.split(token_counts(scales), dim=1)
    for scale, part in zip(scales, parts, strict=True):
        pooled = F.adaptive_avg_pool2d(rest, scale)
        rows.append(pooled.flatten(2).transpose(1, 2).flatten(0, 1))
        entries = model.quantizer.entries(part).transpose(1, 2).unflatten(2, scale)
        rest = rest - F.interpolate(entries, size=rest.shape[-2:], mode="bicubic")
    return torch.cat(rows)
