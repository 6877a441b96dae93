"""For how long a run goes, in what steps, and what is kept of it."""

from dataclasses import dataclass

import torch

from tokenflow.training.parallel import KINDS

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class RunConfig:
    """For how long, in what steps, and what is kept of it.

    Args:
        seed: Of weights, pictures, order and everything else that is drawn.
        batch: Samples per step, over all processes and micro batches.
        accumulate: Micro batches a step is split into.
        steps: Step limit.
        minutes: Time limit; at least one limit is needed, the nearer one counts. Runs
            that end by the clock are not repeatable.
        precision: "float32", "bfloat16" or "float16" (autocast; weights stay float32).
        parallel: "ddp" or "fsdp", where torchrun started several processes.
        recompute: Compute activations again in backward: less memory, more time.
        compile: Compile the blocks of each part (torch.compile); needs a C++ compiler
            on a CPU.
        average: Share of the averaged weights kept at each step, 0 for no average.
        log_every: Steps between lines of the log.
        evaluate_every: Steps between looks at held-out samples, 0 for at the end only.
        save_every: Steps between checkpoints, 0 for at the end only.
        keep: Checkpoints that stay on the disk.
        tensorboard: Write TensorBoard events too.

    Raises:
        ValueError: A value is out of its range.
    """

    seed: int = 0
    batch: int = 16
    accumulate: int = 1
    steps: int | None = None
    minutes: float | None = None
    precision: str = "float32"
    parallel: str = "ddp"
    recompute: bool = False
    compile: bool = False
    average: float = 0.999
    log_every: int = 20
    evaluate_every: int = 500
    save_every: int = 500
    keep: int = 2
    tensorboard: bool = True

    def __post_init__(self) -> None:  # noqa: D105
        if self.steps is None and self.minutes is None:
            raise ValueError("train: run.steps or run.minutes must be given")
        for name in ("batch", "accumulate", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"train: run.{name} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("steps", "minutes", "evaluate_every", "save_every"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"train: run.{name} must be at least 0, got {value}")
        for name, allowed in (("precision", tuple(PRECISIONS)), ("parallel", KINDS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"train: run.{name} must be one of {list(allowed)}, got {value!r}"
                )
        if not 0 <= self.average < 1:
            raise ValueError(
                f"train: run.average must be in [0, 1), got {self.average}"
            )

    def progress(self, step: int, seconds: float) -> float:
        """Return how much of the run is done, in [0, 1]; 1 ends it."""
        done = [0.0]
        if self.steps is not None:
            done.append(step / self.steps if self.steps else 1.0)
        if self.minutes is not None:
            done.append(seconds / (60 * self.minutes) if self.minutes else 1.0)
        return min(1.0, max(done))
