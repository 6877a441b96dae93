"""The rotation trick: a gradient that turns with the vector it belongs to.

Snapping takes a vector e to an entry q. Straight-through hands q's gradient to e as it
is; here q = |q|/|e| · R e, where R turns ê to q̂ in the plane of both, and R and the
ratio of lengths are constants. What pointed along q then points along e, and angles
between gradient and vector are kept.
Source: Fifty et al. 2024, arXiv:2410.06424: R = I − 2 r rᵀ + 2 q̂ êᵀ, r along ê + q̂.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-12  # a shorter vector has no direction


def rotate(rows: Tensor, entries: Tensor) -> Tensor:
    """Return the entries as their rows, turned and stretched; gradient to the rows.

    Equal to `entries` but for rounding. A row opposite to its entry has no plane to
    turn in: it is mirrored onto it. A row without length has no direction: its
    gradient passes as it is.

    Args:
        rows: [..., D].
        entries: [..., D], where they are snapped to; no gradient flows there.

    Returns:
        [..., D], dtype of the rows.
    """
    with torch.no_grad():
        entries = entries.to(rows.dtype)
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        reached = torch.linalg.vector_norm(entries, dim=-1, keepdim=True)
        points = length > _TINY
        start = torch.where(points, rows / length, 0.0)
        end = entries / reached.clamp_min(_TINY)
        middle = torch.where(points, start + end, 0.0)
        norm = torch.linalg.vector_norm(middle, dim=-1, keepdim=True)
        middle = middle / norm.clamp_min(_TINY)
        ratio = torch.where(points, reached / length, 1.0)
    turned = rows - 2 * middle * (middle * rows).sum(-1, keepdim=True)
    turned = turned + 2 * end * (start * rows).sum(-1, keepdim=True)
    return ratio * turned
