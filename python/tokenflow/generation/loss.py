"""Cross-entropy of a linear head: from its logits, or without ever having them all.

Logits of thousands of entries for every token of every picture are much of a training
step's memory, and writing and reading them again a good part of its time.
`linear_cross_entropy` makes them for a few rows at a time, which give their gradient
before the next ones come. A target may be shared among several ids.
Source: the chunking is that of Liger Kernel, arXiv:2410.10989.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = {"cpu": 512, "cuda": 4096}  # whose logits are there at a time


def cross_entropy(logits: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
    """Return the mean over all rows of −Σ_j shares_j · log softmax(logits)_ids_j.

    Args:
        logits: [..., V], floating.
        ids: [..., m] int64 in [0, V), what j counts.
        shares: [..., m], of 1; a row whose shares are all 0 counts nothing.

    Returns:
        [] float32; NaN where there are no rows.
    """
    _check(logits, ids, shares)
    found = logits.float().log_softmax(-1).gather(-1, ids)
    return -(found * shares.float()).sum(-1).mean()


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, ids: Tensor, shares: Tensor
) -> Tensor:
    """Return `cross_entropy` of hidden · weightᵀ, a few rows at a time.

    Under autocast products are taken in its dtype; sums are float32.

    Args:
        hidden: [..., D], floating.
        weight: [V, D], same device.
        ids, shares: As of `cross_entropy`.

    Returns:
        [] float32; NaN where there are no rows. Differentiable once, in hidden and
        weight.
    """
    _check(hidden, ids, shares)
    kind = hidden.device.type
    mixed = torch.is_autocast_enabled(kind)
    if not torch.is_grad_enabled():  # a Function is not told
        hidden, weight = hidden.detach(), weight.detach()
    return _LinearCrossEntropy.apply(
        hidden.flatten(0, -2),
        weight,
        ids.flatten(0, -2),
        shares.flatten(0, -2).float(),
        torch.get_autocast_dtype(kind) if mixed else hidden.dtype,
    )


def _check(rows: Tensor, ids: Tensor, shares: Tensor) -> None:
    if ids.shape[:-1] != rows.shape[:-1] or shares.shape != ids.shape:
        raise ValueError(
            "cross_entropy: ids and shares must both be [..., m] with the rows "
            f"{list(rows.shape[:-1])}, got {list(ids.shape)} and {list(shares.shape)}"
        )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        ids: Tensor,
        shares: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        """Return the loss; keep its gradients, which are made along with it."""
        head, rows = weight.to(dtype), ROWS.get(hidden.device.type, 512)
        for_hidden, for_weight, *_ = ctx.needs_input_grad
        by_hidden = torch.empty_like(hidden) if for_hidden else None
        by_weight = torch.zeros_like(head, dtype=torch.float32) if for_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), rows):
            here = slice(start, start + rows)
            x, wanted, share = hidden[here].to(dtype), ids[here], shares[here]
            whole = share.sum(1, keepdim=True)
            logits = (x @ head.T).float()
            top = logits.amax(1, keepdim=True)
            total -= (logits.gather(1, wanted) * share).sum()
            sums = logits.sub_(top).exp_().sum(1, keepdim=True)
            total += (whole * (top + sums.log())).sum()
            # of the sum of all rows: of the mean it would be too small for float16
            chances = logits.mul_(whole / sums)
            slope = chances.scatter_add_(1, wanted, -share).to(dtype)
            if by_hidden is not None:
                by_hidden[here] = slope @ head
            if by_weight is not None:
                by_weight += slope.T @ x
        ctx.rows, ctx.gradients = len(hidden), (by_hidden, by_weight)
        ctx.dtype = weight.dtype
        return total / len(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that are there already."""
        scale = gradient / ctx.rows
        by_hidden, by_weight = ctx.gradients
        if by_hidden is not None:
            by_hidden = by_hidden * scale
        if by_weight is not None:
            by_weight = (by_weight * scale).to(ctx.dtype)
        return by_hidden, by_weight, None, None, None
