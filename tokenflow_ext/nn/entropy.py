"""How evenly entries are used, and how surely: a loss that never stores N × K.

Each vector is softly assigned, p_nk = softmax_k(−|x_n − E_k|² / temperature). The loss
is the mean entropy of a vector's assignment (to be small: sure) minus the entropy of
the mean assignment (to be large: all entries used). Vectors are taken a chunk at a
time, and a chunk's assignments are computed again in the backward pass.
Source: the entropy penalty of MAGVIT-v2, arXiv:2310.05737, as TokenFlow trains with it.
"""

from __future__ import annotations

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..ops._layout import no_autocast

_SCORES_AT_ONCE = 1 << 22


def entropy_loss(vectors: Tensor, entries: Tensor, temperature: float = 0.01) -> Tensor:
    """Return mean entropy of the assignments minus entropy of their mean.

    Args:
        vectors: [N, D], float32 or float64.
        entries: [K, D], same dtype and device.
        temperature: Above 0; the smaller, the harder the assignment.

    Returns:
        A scalar. Differentiable in both, and twice.
    """
    squares = entries.square().sum(dim=1)
    used = entries.new_zeros(len(entries))
    own = entries.new_zeros(())
    for part in vectors.split(max(1, _SCORES_AT_ONCE // len(entries))):
        used_here, own_here = checkpoint(
            _assign,
            part,
            entries,
            squares,
            temperature,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        used, own = used + used_here, own + own_here
    mean = used / len(vectors)
    return own / len(vectors) + (mean * (mean + 1e-5).log()).sum()


def _assign(
    part: Tensor, entries: Tensor, squares: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Σ_n p_nk, [K], and the summed entropy of the rows."""
    with no_autocast(part):
        # |x_n|² is the same for every entry and cancels.
        scores = (2 * part @ entries.T - squares) / temperature
    log_p = scores.log_softmax(dim=1)
    p = log_p.exp()
    return p.sum(dim=0), -(p * log_p).sum()
