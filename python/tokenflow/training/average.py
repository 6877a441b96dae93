"""The running average of the weights, which is what is judged and shipped.

Parameters are averaged, buffers are taken as they are (as published). The average is a
set of tensors beside the module, spread over processes where its parameters are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The average of a module's trained parameters.

    Args:
        module: Its parameters that want a gradient, or are moved otherwise (`also`).
        decay: Share of the old average kept at each step; less while it is young.
            0 keeps no average: the weights themselves count.
        also: Further parameters to average, by identity.
    """

    def __init__(
        self, module: nn.Module, decay: float, also: tuple[Tensor, ...] = ()
    ) -> None:
        self.decay = decay
        wanted = {id(p) for p in also}
        self.parameters = {
            name: p
            for name, p in module.named_parameters()
            if decay and (p.requires_grad or id(p) in wanted)
        }
        self.values = {n: p.detach().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after step number `step` (0-based)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.values[name].lerp_(parameter, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the average in the module instead of the weights, for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(kept)
