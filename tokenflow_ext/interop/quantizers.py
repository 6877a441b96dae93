"""Quantizers with one `nn.Embedding`: transformers, diffusers, taming, LlamaGen, VAR.

All of them compare every vector with every entry, keep the distances and take the
first least; we ask `nearest` instead and compute the rest as they do: losses,
straight-through gradient, shapes, extra results. Vectors that are not finite get entry
0, as theirs do.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.entropy import entropy_loss
from ..nn.kept import KeptBooks
from ..ops.nearest import nearest
from ._swap import Family, home, original


def find(module: Any, vectors: Tensor, book: Tensor, normalize: bool) -> Tensor:
    """Return the nearest entry of each vector, keeping prepared books in evaluation."""
    kept = module.__dict__.setdefault("_tokenflow_books", KeptBooks())
    prepared = kept.get(book, normalize=normalize, keep=not module.training)
    indices = nearest(vectors, book, normalize=normalize, prepared=prepared)
    return indices.clamp_min(0)


def _train(self: Any, mode: bool = True) -> Any:
    self.__dict__.pop("_tokenflow_books", None)
    return original(self).train(self, mode)


class _Snapped:
    """Features [B, C, H, W] snapped to entries, and the two usual losses."""

    def __init__(self, module: Any, features: Tensor, normalize: bool = False) -> None:
        rows = features.permute(0, 2, 3, 1).contiguous()
        self.rows = F.normalize(rows, dim=-1) if normalize else rows
        flat = rows.view(-1, rows.shape[-1])
        self.indices = find(module, flat, module.embedding.weight, normalize)
        entries = module.embedding(self.indices).view(rows.shape)
        self.entries = F.normalize(entries, dim=-1) if normalize else entries

    def to_entries(self) -> Tensor:
        """The loss whose gradient moves features to their entries."""
        return (self.entries.detach() - self.rows).square().mean()

    def to_rows(self) -> Tensor:
        """The loss whose gradient moves entries to their features."""
        return (self.entries - self.rows.detach()).square().mean()

    def straight_through(self) -> Tensor:
        """The entries, [B, C, H, W], with the gradient of the features."""
        value = self.rows + (self.entries - self.rows).detach()
        return value.permute(0, 3, 1, 2)


def _embedding(module: Any) -> bool:
    return isinstance(getattr(module, "embedding", None), nn.Embedding)


def _has(module: Any, *names: str) -> bool:
    return _embedding(module) and all(hasattr(module, name) for name in names)


def _trial(module: Any) -> tuple[Tensor, ...]:
    """Twelve vectors near entries: [2, C, 2, 3]."""
    book = module.embedding.weight
    generator = torch.Generator().manual_seed(0)
    pick = torch.randint(len(book), (12,), generator=generator).to(book.device)
    noise = torch.randn(12, book.shape[1], generator=generator).to(book)
    rows = book[pick] + 0.01 * noise * book[pick].square().mean().sqrt()
    return (rows.view(2, 2, 3, -1).permute(0, 3, 1, 2).contiguous(),)


# transformers


def _transformers_forward(self: Any, hidden_state: Tensor) -> tuple[Tensor, ...]:
    unit = type(self).__name__.startswith("GlmImage")
    snapped = _Snapped(self, hidden_state, normalize=unit)
    loss = snapped.to_entries() + self.beta * snapped.to_rows()
    return snapped.straight_through().contiguous(), loss, snapped.indices


def _transformers_fits(module: Any) -> bool | str:
    kinds = ("Chameleon", "Janus", "GlmImage")
    names = [f"{kind}VQVAEVectorQuantizer" for kind in kinds]
    return home(module, "transformers", *names) and _has(module, "beta")


def _emu3_forward(self: Any, hidden_state: Tensor) -> Tensor:
    rows = hidden_state.permute(0, 1, 3, 4, 2)
    return find(self, rows, self.embedding.weight, normalize=False)


def _emu3_fits(module: Any) -> bool | str:
    return home(module, "transformers", "Emu3VQVAEVectorQuantizer") and _has(module)


# diffusers and taming-transformers: the same class, once removed


def _taming_forward(self: Any, z: Tensor, *rest: Any, **named: Any) -> Any:
    if rest or named:  # what stands there for likeness with a Gumbel quantizer
        return original(self).forward(self, z, *rest, **named)
    snapped = _Snapped(self, z)
    to_entries, to_rows = snapped.to_entries(), snapped.to_rows()
    if self.legacy:
        loss = to_entries + self.beta * to_rows
    else:
        loss = self.beta * to_entries + to_rows
    quantized = snapped.straight_through().contiguous()
    indices = snapped.indices
    if self.remap is not None:
        indices = self.remap_to_used(indices.reshape(len(z), -1)).reshape(-1, 1)
    if self.sane_index_shape:
        indices = indices.reshape(len(z), *z.shape[2:])
    return quantized, loss, (None, None, indices)


_TAMING = ("n_e", "beta", "legacy", "remap", "sane_index_shape")


def _diffusers_fits(module: Any) -> bool | str:
    return home(module, "diffusers", "VectorQuantizer") and _has(module, *_TAMING)


def _taming_fits(module: Any) -> bool | str:
    return _has(module, "e_dim", *_TAMING)


def _first_taming_forward(self: Any, z: Tensor) -> Any:
    snapped = _Snapped(self, z)
    loss = snapped.to_entries() + self.beta * snapped.to_rows()
    one_hot = F.one_hot(snapped.indices, self.n_e).to(z)  # part of what it returns
    share = one_hot.mean(dim=0)
    perplexity = torch.exp(-(share * torch.log(share + 1e-10)).sum())
    quantized = snapped.straight_through().contiguous()
    return quantized, loss, (perplexity, one_hot, snapped.indices[:, None])


def _first_taming_fits(module: Any) -> bool | str:
    others = ("legacy", "l2_norm", "remap")
    return _has(module, "n_e", "e_dim", "beta") and not any(
        hasattr(module, name) for name in others
    )


# LlamaGen


def _llamagen_forward(self: Any, z: Tensor) -> Any:
    snapped = _Snapped(self, z, normalize=self.l2_norm)
    losses: tuple[Any, ...] = (None, None, None, 0)
    if self.training:
        usage = _llamagen_usage(self, snapped.indices) if self.show_usage else 0
        to_entries = self.beta * snapped.to_entries()
        losses = (
            snapped.to_rows(),
            to_entries,
            _llamagen_entropy(self, snapped),
            usage,
        )
    return snapped.straight_through(), losses, (None, None, snapped.indices)


def _llamagen_entropy(self: Any, snapped: _Snapped) -> Tensor:
    if self.entropy_loss_ratio == 0:
        return snapped.rows.new_zeros(())
    book = self.embedding.weight
    book = F.normalize(book, dim=-1) if self.l2_norm else book
    loss = entropy_loss(snapped.rows.flatten(0, -2), book)
    return self.entropy_loss_ratio * loss


@torch.no_grad()
def _llamagen_usage(self: Any, indices: Tensor) -> float:
    latest = torch.cat([self.codebook_used, indices.to(self.codebook_used)])
    self.codebook_used.copy_(latest[-len(self.codebook_used) :])
    return len(torch.unique(self.codebook_used)) / self.n_e


def _llamagen_fits(module: Any) -> bool | str:
    return _has(
        module, "n_e", "e_dim", "beta", "entropy_loss_ratio", "l2_norm", "show_usage"
    )


# VAR: its encoding, a pyramid with a convolution behind every enlargement


def _var_encode(
    self: Any, f_BChw: Tensor, to_fhat: bool, v_patch_nums: Any = None
) -> list[Tensor]:
    sides = v_patch_nums or self.v_patch_nums
    grids = [(s, s) if isinstance(s, int) else (s[0], s[1]) for s in sides]
    whole = (f_BChw.shape[-2], f_BChw.shape[-1])
    if grids[-1] != whole or self.prog_si >= 0:
        encode = original(self).f_to_idxBl_or_fhat
        return encode(self, f_BChw, to_fhat, v_patch_nums)
    rest, total = f_BChw.detach(), torch.zeros_like(f_BChw.detach())
    results = []
    for i, grid in enumerate(grids):
        last = i == len(grids) - 1
        pooled = rest if last else F.interpolate(rest, size=grid, mode="area")
        rows = pooled.permute(0, 2, 3, 1)
        indices = find(self, rows, self.embedding.weight, self.using_znorm)
        cells = self.embedding(indices).permute(0, 3, 1, 2)
        if not last:
            cells = F.interpolate(cells, size=whole, mode="bicubic")
        cells = self.quant_resi[i / (len(grids) - 1)](cells.contiguous())
        total, rest = total + cells, rest - cells
        results.append(total if to_fhat else indices.flatten(1))
    return results


_VAR = ("vocab_size", "Cvae", "using_znorm", "quant_resi", "prog_si", "v_patch_nums")


def _var_fits(module: Any) -> bool | str:
    names = (*_VAR, "f_to_idxBl_or_fhat")
    return _has(module, *names) and len(module.v_patch_nums) > 1


def _var_trial(module: Any) -> tuple[Any, ...]:
    """The first grids only: a near tie would be taken for another meaning."""
    grids = tuple(module.v_patch_nums[:3])
    book = module.embedding.weight
    generator = torch.Generator().manual_seed(0)
    shape = (1, book.shape[1], grids[-1], grids[-1])
    features = torch.randn(shape, generator=generator).to(book)
    return features * book.square().mean().sqrt(), False, grids


def _methods(forward: Any) -> dict[str, Any]:
    return {"forward": forward, "train": _train}


FAMILIES = (
    Family("transformers", _transformers_fits, _methods(_transformers_forward)),
    Family("transformers Emu3", _emu3_fits, _methods(_emu3_forward)),
    Family("diffusers", _diffusers_fits, _methods(_taming_forward)),
    Family("taming", _taming_fits, _methods(_taming_forward), _trial),
    Family("LlamaGen", _llamagen_fits, _methods(_llamagen_forward), _trial),
    Family(
        "VAR",
        _var_fits,
        {"f_to_idxBl_or_fhat": _var_encode, "train": _train},
        _var_trial,
        "f_to_idxBl_or_fhat",
    ),
    Family("first taming", _first_taming_fits, _methods(_first_taming_forward), _trial),
)
