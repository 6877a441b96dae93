"""VectorQuantize of vector-quantize-pytorch: Euclidean and cosine codebooks.

Its codebook returns, beside the entries, the distance to every entry; only some options
read that. Without them the index comes from `nearest`, and the moving averages, k-means
start and replacement of dead codes stay its own. ResidualVQ and the other classes built
of VectorQuantize gain with it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.nearest import nearest
from ._swap import Family, family_of, home, original

_PACKAGE = "vector_quantize_pytorch"


def _forward(self: Any, x: Tensor, indices: Any = None, **options: Any) -> Any:
    """As theirs; tells the codebook whether anybody will read the distances."""
    distances_read = (
        indices is not None
        or options.get("topk") is not None
        or options.get("codebook_transform_fn") is not None
        or (self.training and self.has_codebook_diversity_loss)
        or (self.training and self.commitment_use_cross_entropy_loss)
    )
    forward = functools.partial(original(self).forward, self, x, indices, **options)
    if distances_read or family_of(self._codebook) is None:
        return forward()
    self._codebook.__dict__["_tokenflow_alone"] = True
    try:
        return forward()
    finally:
        self._codebook.__dict__["_tokenflow_alone"] = False


def _fits(module: Any) -> bool | str:
    if not home(module, _PACKAGE, "VectorQuantize"):
        return False
    codebook = module._codebook
    verdict = family_of(codebook) is not None or _codebook_fits(codebook)
    return verdict or f"its codebook is a {type(codebook).__name__}"


def _codebook_forward(
    self: Any,
    x: Tensor,
    *rest: Any,
    mask: Tensor | None = None,
    freeze_codebook: bool = False,
    update_usage: bool = True,
    **options: Any,
) -> Any:
    """(entries, indices, None) of x: [b, n, d], or [h, b, n, d] for h codebooks."""
    if rest or not self.__dict__.get("_tokenflow_alone"):
        given = {"mask": mask, "freeze_codebook": freeze_codebook, **options}
        given["update_usage"] = update_usage
        return original(self).forward(self, x, *rest, **given)
    heads = x.float() if x.dim() == 4 else x.float()[None]
    rows = heads.flatten(1, -2)
    mask = None if mask is None else _mask_of_rows(mask, rows)
    self.init_embed_(rows, mask=mask)
    embed = (self.embed if self.learnable_codebook else self.embed.detach()).float()
    indices = torch.stack(
        [
            # Their averages are written through `.data`, so nothing may be kept.
            nearest(rows[i], embed[i], normalize=self.use_cosine_sim).clamp_min(0)
            for i in range(len(rows))
        ]
    )
    entries = torch.stack([F.embedding(indices[i], embed[i]) for i in range(len(rows))])
    averages = {
        name: options[name]
        for name in ("ema_update_weight", "accum_ema_update", "ema_update")
        if name in options
    }
    if averages.get("ema_update") is None:
        averages["ema_update"] = self.ema_update
    moving = averages["ema_update"] or self.has_dead_code_replacement
    if self.training and update_usage and not freeze_codebook and moving:
        one_hot = F.one_hot(indices, self.codebook_size).float()
        self.update_codebook(rows, one_hot, mask=mask, **averages)
    entries = entries.view(heads.shape)
    indices = indices.view(heads.shape[:-1])
    return (entries, indices, None) if x.dim() == 4 else (entries[0], indices[0], None)


def _mask_of_rows(mask: Tensor, rows: Tensor) -> Tensor:
    """[b, n] → [h, rows]: each picture's mask once per head that was folded into it."""
    repeats = rows.shape[1] // mask.numel()
    whole = mask[:, None].expand(-1, repeats, -1).reshape(1, -1)
    return whole.expand(len(rows), -1)


def _codebook_fits(module: Any) -> bool | str:
    if not home(module, _PACKAGE, "Codebook"):
        return False
    sampling = getattr(module.gumbel_sample, "keywords", None)
    if sampling is None:
        return "its way of sampling is its own"
    if sampling.get("stochastic") or sampling.get("straight_through"):
        return "it samples its codes"
    if module.affine_param:
        return "it has affine parameters"
    if module.vq_bridge is not None:
        return "it has a bridge"
    if module.use_cosine_sim and module.learnable_codebook:
        return "its cosine codebook is learnable"
    return True


FAMILIES = (
    Family(
        "vector-quantize-pytorch codebook",
        _codebook_fits,
        {"forward": _codebook_forward},
    ),
    Family("vector-quantize-pytorch", _fits, {"forward": _forward}),
)
