"""The recipe of a training run, as a value read from a TOML file.

A recipe that ships is named (`mini`), any other is a path. Every field can be
changed from the command line; what a run used is written beside its checkpoints.
"""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class TrainConfig:
    """What to train, on what, for how long.

    Args:
        preset: Name of the tokenizer's configuration.
        model: Fields of that configuration to change.
        seed: Of weights, pictures and order.
        batch: Pictures per step.
        minutes: Time limit, the teacher's not counted; None for no limit.
        steps: Step limit; at least one limit is needed. The learning rate follows
            whichever is nearer.
        learning_rate: Peak, for Muon and AdamW alike.
        book_rate: Learning rate of the two books, as a multiple of that.
        warmup: Steps of linear warm-up.
        final_rate: Learning rate at the end, as a share of the peak.
        betas: Of AdamW, which moves what Muon does not; see `muon`.
        weight_decay: Of matrices.
        clip: Largest norm of the gradient.
        l1: Weight of |x - y| beside the squared error.
        semantic: Weight of 1 - cosine(rebuilt, teacher).
        ema: Share of the old average kept at each step.
        fill_at: Steps at which all entries are set onto current vectors.
        revive_after: Steps after which an unused entry is set anew; 0 for never.
        revive_until: Share of the training after which that stops.
        bfloat16: Run the networks under bfloat16 autocast.
        threads: Threads that share the batch of a step, on the CPU. Each runs torch
            with a single thread, so a busy core holds up one share, not every op.
        teacher_minutes: Time limit of the teacher's training.
        teacher_batch: Pictures per step of the teacher.
        teacher_rate: Peak learning rate of the teacher.
        evaluate_every: Seconds between looks at held-out pictures.
        evaluate_pictures: How many of them.
        save_every: Seconds between checkpoints.

    Raises:
        ValueError: A value is out of its range.
    """

    preset: str = "mini"
    model: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch: int = 16
    minutes: float | None = None
    steps: int | None = None
    learning_rate: float = 1e-3
    book_rate: float = 1.0
    warmup: int = 100
    final_rate: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    l1: float = 0.0
    semantic: float = 0.1
    ema: float = 0.999
    fill_at: tuple[int, ...] = (0,)
    revive_after: int = 128
    revive_until: float = 0.8
    bfloat16: bool = False
    threads: int = 1
    teacher_minutes: float = 3.0
    teacher_batch: int = 32
    teacher_rate: float = 2e-3
    evaluate_every: float = 120.0
    evaluate_pictures: int = 256
    save_every: float = 300.0

    def __post_init__(self) -> None:  # noqa: D105
        if self.minutes is None and self.steps is None:
            raise ValueError("train: minutes or steps must be given, got neither")
        for name in ("batch", "threads", "teacher_batch", "evaluate_pictures"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"train: {name} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("learning_rate", "clip", "teacher_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"train: {name} must be above 0, got {getattr(self, name)}"
                )
        for name in ("minutes", "steps"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"train: {name} must be at least 0, got {value}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"train: ema must be in [0, 1), got {self.ema}")
        if self.batch % self.threads:
            raise ValueError(
                f"train: batch must be a multiple of threads = {self.threads}, "
                f"got {self.batch}"
            )
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "fill_at", tuple(self.fill_at))

    def progress(self, step: int, seconds: float) -> float:
        """Return how much of the training is done, in [0, 1]; 1 ends it."""
        done = [0.0]
        if self.steps is not None:
            done.append(step / self.steps if self.steps else 1.0)
        if self.minutes is not None:
            done.append(seconds / (60 * self.minutes) if self.minutes else 1.0)
        return min(1.0, max(done))


def recipes() -> list[str]:
    """Return the names of the recipes that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(recipe: str | Path, **changes: Any) -> TrainConfig:
    """Read a recipe by name or path and change the fields that are not None.

    Raises:
        FileNotFoundError: Neither a shipped recipe nor a file.
        ValueError: The file is no TOML, has an unknown field, or a value is out of
            its range.
    """
    named = FOLDER / f"{recipe}.toml"
    path = named if named.is_file() else Path(recipe)
    if not path.is_file():
        raise FileNotFoundError(
            f"train: recipe must be one of {recipes()} or a TOML file, got {recipe}"
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"train: {path} must be a TOML file ({error})") from None
    values |= {name: value for name, value in changes.items() if value is not None}
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"train: {path} must have known fields only, got {unknown}")
    return TrainConfig(**values)
