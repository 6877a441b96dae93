"""Muon: steps of equal size in every direction of a matrix.

The momentum of a weight matrix is dominated by a few directions. Muon replaces it by
the nearest orthogonal matrix, found by five rounds of a polynomial, so that the rare
directions move as well; a convolution counts as the matrix [out, in · kernel].
Everything else (biases, norms, books, tables, very thin matrices) takes AdamW.
torch.optim.Muon takes matrices alone, not convolutions.
Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; the scaling that lets
both share a learning rate is that of arXiv:2502.16982.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

POLYNOMIAL = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
THINNEST = 24  # a matrix with fewer rows or columns takes AdamW


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix with singular values of 1: [n, m], float32.

    The singular values of the result lie between about 0.7 and 1.2.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    a, b, c = POLYNOMIAL
    for _ in range(ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).float()


def takes_muon(name: str, parameter: Tensor) -> bool:
    """Say whether a parameter of that name is a weight matrix Muon is meant for."""
    if parameter.ndim < 2 or not name.endswith("weight"):
        return False
    return min(parameter.flatten(1).shape) >= THINNEST


class Muon(torch.optim.Optimizer):
    """Muon for weight matrices, AdamW for the rest; one learning rate for both.

    Args:
        groups: (share, named): (name, parameter) pairs and their multiple of the
            learning rate.
        betas: Of AdamW; Muon's momentum is 0.95.
        weight_decay: Of matrices.
    """

    def __init__(
        self,
        groups: Iterable[tuple[float, Iterable[tuple[str, nn.Parameter]]]],
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ):
        split = []
        for share, named in groups:
            kinds: tuple[list, list] = ([], [])
            for name, parameter in named:
                kinds[takes_muon(name, parameter)].append(parameter)
            for muon, parameters in enumerate(kinds):
                if parameters:
                    group = {"params": parameters, "share": share, "muon": bool(muon)}
                    split.append(group)
        defaults: dict[str, Any] = {"lr": 0.0, "decay": weight_decay, "betas": betas}
        super().__init__(split, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Move every parameter that has a gradient; `closure` is not used."""
        for group in self.param_groups:
            move = self._muon if group["muon"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move(parameter, group)

    def _muon(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        memory = self.state[parameter]
        if not memory:
            memory["momentum"] = torch.zeros_like(parameter)
        momentum = memory["momentum"]
        momentum.mul_(0.95).add_(parameter.grad)
        update = parameter.grad.add(momentum, alpha=0.95).flatten(1)
        update = orthogonal(update) * (0.2 * max(update.shape) ** 0.5)
        parameter.mul_(1 - group["lr"] * group["decay"])
        parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"])

    def _adam(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        memory = self.state[parameter]
        if not memory:
            memory["step"] = torch.zeros(())
            memory["mean"] = torch.zeros_like(parameter)
            memory["square"] = torch.zeros_like(parameter)
        memory["step"] += 1
        step, (one, two) = memory["step"].item(), group["betas"]
        memory["mean"].lerp_(parameter.grad, 1 - one)
        memory["square"].mul_(two).addcmul_(
            parameter.grad, parameter.grad, value=1 - two
        )
        width = memory["square"].div(1 - two**step).sqrt_().add_(1e-8)
        rate = group["lr"] / (1 - one**step)
        parameter.addcdiv_(memory["mean"], width, value=-rate)
