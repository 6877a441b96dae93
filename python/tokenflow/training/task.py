"""What is trained, as the loop sees it, and where in a run it is asked.

Everything random is drawn from a `Moment`, a pure function of the run's seed, the step
and a name, the same on every process.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tokenflow.training.log import Log
from tokenflow.training.optimizers import OptimizerConfig
from tokenflow.training.world import World

Batch = dict[str, Any]


@dataclass(frozen=True)
class Moment:
    """Where a run is."""

    step: int  # steps that were made before this one
    progress: float  # in [0, 1]
    seed: int
    world: World

    def rng(self, *names: Any) -> random.Random:
        """Return a generator that depends on seed, step and names alone."""
        return random.Random(f"{self.seed}/{self.step}/{'/'.join(map(str, names))}")


class Task(ABC):
    """What is trained. A task of one part, "model", says no more than it must.

    Attributes:
        parts: What is trained, in the order of its steps.
        optimizers: Of each part.
        kept: What else is in checkpoints, though no optimizer moves it.
    """

    parts: dict[str, nn.Module]
    optimizers: dict[str, OptimizerConfig]
    kept: Mapping[str, nn.Module] = MappingProxyType({})

    def whole(self, part: str) -> tuple[nn.Parameter, ...]:
        """Return the parameters that FSDP must not spread."""
        return ()

    def blocks(self, part: str) -> tuple[nn.Module, ...]:
        """Return the modules that FSDP gathers, and `recompute` recomputes, singly."""
        return ()

    def averaged(self) -> str:
        """Return the name of the part whose average is judged and shipped."""
        return "model"

    @abstractmethod
    def batches(self, start: int, world: World) -> Iterator[Batch]:
        """Yield this process's share of each step's batch, from step `start` on."""

    def before_step(  # noqa: B027
        self, batch: Batch, optimizers: dict[str, torch.optim.Optimizer], moment: Moment
    ) -> None:
        """Prepare for a step with the whole of this process's batch."""

    @abstractmethod
    def loss(
        self, part: str, call: nn.Module, batch: Batch, moment: Moment
    ) -> dict[str, Tensor]:
        """Return the part's losses by name and their sum as "loss"; {} for no step.

        `call` is the part, as a forward must go through it.
        """

    def after_step(
        self, optimizers: dict[str, torch.optim.Optimizer], moment: Moment
    ) -> dict[str, float]:
        """Tend to what has no gradient; returns facts for the log."""
        return {}

    @abstractmethod
    def judge(self, log: Log, moment: Moment) -> dict[str, float]:
        """Return held-out scores; the averaged weights are in place."""

    @abstractmethod
    def finish(self, folder: Path, world: World) -> None:
        """Write the result to RUN; the averaged weights are in place."""
