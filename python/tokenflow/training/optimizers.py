"""What moves the weights of one part, and how fast.

Adam with the published values, AdamW, or Muon (see `muon`); the learning rate is
constant as published, or falls along a half cosine, after a linear warm-up. The rate
is a function of step and progress alone, so there is no scheduler to save.
Source: TokenFlow, arXiv:2412.03069, table 11, and its training script.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tokenflow.training.muon import Muon

NAMES = ("adam", "adamw", "muon")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class OptimizerConfig:
    """How one part is optimized.

    Args:
        name: "adam" (published), "adamw" or "muon".
        learning_rate: Peak.
        rates: Multiples of it for parameters whose name begins with a key.
        betas: Of Adam, AdamW, and of what Muon leaves to AdamW.
        weight_decay: Of AdamW, and of matrices under Muon; norms, biases and single
            numbers are spared.
        clip: Largest norm of the part's gradient, 0 for any.
        warmup: Steps of linear warm-up.
        schedule: "constant" (published) or "cosine".
        final: Learning rate at the end of "cosine", as a share of the peak.

    Raises:
        ValueError: A value is out of its range.
    """

    name: str = "adam"
    learning_rate: float = 1e-4
    rates: dict[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup: int = 0
    schedule: str = "constant"
    final: float = 0.0

    def __post_init__(self) -> None:  # noqa: D105
        for name, allowed in (("name", NAMES), ("schedule", SCHEDULES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"train: optimizer.{name} must be one of {list(allowed)}, "
                    f"got {value!r}"
                )
        if not self.learning_rate > 0:
            raise ValueError(
                "train: optimizer.learning_rate must be above 0, "
                f"got {self.learning_rate}"
            )
        for name in ("weight_decay", "clip", "warmup", "final"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"train: optimizer.{name} must be at least 0, "
                    f"got {getattr(self, name)}"
                )

    def rate(self, step: int, progress: float) -> float:
        """Return the learning rate of a step: warm-up, then the schedule."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = 1.0
        if self.schedule == "cosine":
            half = 0.5 * (1 + math.cos(math.pi * progress))
            fall = self.final + (1 - self.final) * half
        return self.learning_rate * warm * fall


def build_optimizer(
    module: nn.Module, config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Return the optimizer of a part's parameters that want a gradient.

    Every group has a "share": its multiple of the learning rate.

    Raises:
        ValueError: Nothing wants a gradient, a key of `rates` fits no parameter, or
            Muon is asked to move matrices that are spread over processes.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("train: a part to train must have parameters, it has none")
    for prefix in config.rates:
        if not any(name.startswith(prefix) for name, _ in named):
            raise ValueError(
                f"train: optimizer.rates: no trained parameter begins with {prefix!r}"
            )
    groups: dict[tuple[float, bool, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        share = next(
            (r for prefix, r in config.rates.items() if name.startswith(prefix)), 1.0
        )
        spread = isinstance(parameter, DTensor)  # such and others may not share a group
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((share, spread, decay), []).append((name, parameter))
    if config.name == "muon":
        if any(spread for _, spread, _ in groups):
            raise ValueError(
                "train: optimizer.name muon needs whole matrices; take adamw with fsdp"
            )
        return Muon(
            [(share, named) for (share, _, _), named in groups.items()],
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(
        [
            {"params": [p for _, p in named], "share": share, "weight_decay": decay}
            for (share, _, decay), named in groups.items()
        ],
        lr=config.learning_rate,
        betas=config.betas,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, each times its share."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


@torch.no_grad()
def clip_gradient(module: nn.Module, limit: float) -> Tensor:
    """Shrink a part's gradient to a largest norm; returns the norm it had, [].

    Parameters that FSDP spreads over processes and whole ones are summed alike.
    """
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    kinds = ([], [])
    for gradient in gradients:
        kinds[isinstance(gradient, DTensor)].append(gradient)
    norms = []
    for kind in kinds:
        if kind:
            norm = nn.utils.get_total_norm(kind)
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    norm = torch.stack(norms).norm() if norms else torch.zeros(())
    if limit:
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.to(gradient.device))
    return norm
