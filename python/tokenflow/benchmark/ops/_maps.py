"""What operations on feature maps have in common: layouts, the judge, traffic."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LAST = torch.channels_last


def last(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same in channels_last."""
    return tuple(t.contiguous(memory_format=LAST) for t in tensors)


def poisoned(like: Tensor, size: tuple[int, ...]) -> Tensor:
    """Room for a result, full of NaN, in the layout of `like`."""
    out = torch.full(size, torch.nan, dtype=like.dtype, device=like.device)
    is_last = not like.is_contiguous() and like.is_contiguous(memory_format=LAST)
    return out.contiguous(memory_format=LAST) if is_last else out


def judge(eager: Callable[[Any], Tensor]) -> Callable[..., dict[str, Any]]:
    """Return a judge of the worst error.

    Right is what errs no more than ten times as much as torch's own operators (`eager`,
    a function of the case); a peer beyond that computes something else.
    """

    def judged(found: Tensor, right: Tensor, case: Any) -> dict[str, Any]:
        error = worst(case.part(found), right)
        own = worst(case.part(eager(case)), right)
        return {"error": error, "eager": own, "right": error <= 10 * own + 1e-5}

    return judged


def worst(found: Tensor, right: Tensor) -> float:
    """Largest difference; infinite where a value is no number."""
    difference = (found.double() - right).abs()
    return float(difference.nan_to_num(torch.inf, torch.inf).max())
