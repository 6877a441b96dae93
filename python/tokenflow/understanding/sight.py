"""What looks at pictures inside a larger model: frozen, and float32 whatever that is.

So a picture has the same tokens in every model that reads it, which are those that
`tokenflow encode` writes. To compare with, a teacher may look instead.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokenflow.config import TokenFlowConfig
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.teachers import Teacher, new_teacher


class _Frozen(nn.Module):
    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if not tensor.is_floating_point() or moved.dtype == tensor.dtype:
                return moved
            return tensor.to(moved.device)

        return super()._apply(keep_float32, recurse)


class Sight(_Frozen, TokenFlowTokenizer):
    """The tokenizer inside a larger model.

    Args:
        config: Its sizes.
    """

    def __init__(self, config: TokenFlowConfig) -> None:
        with _float32():
            super().__init__(config)
        self.requires_grad_(False).eval()


class TeacherSight(_Frozen, Teacher):
    """A teacher in its place.

    Args:
        options: See `new_teacher`.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        with _float32():
            made = new_teacher(options)
        super().__init__(
            made.kind, made.encoder, made.head, made.width, made.scaling, options
        )

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device


@contextmanager
def _float32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
