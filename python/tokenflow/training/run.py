"""The folder of a training run: its log, its checkpoint, what it was told to do.

recipe.json        every field of the recipe
log.jsonl          one line per event, each with the event's name
teacher.safetensors
checkpoint.safetensors    weights, average, optimizer; counters in the metadata
model/             the result, as `TokenFlowTokenizer.from_pretrained` reads it
Files appear whole or not at all: each is written beside its place and then moved.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from tokenflow._files import writing
from tokenflow.training.config import TrainConfig

CHECKPOINT = "checkpoint.safetensors"


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with writing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all."""
    with writing(path) as beside:
        save_file({k: v.contiguous() for k, v in tensors.items()}, beside, metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file and its metadata.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"train: nothing to resume, {path} is not there")
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata() or {})


def write_recipe(folder: Path, config: TrainConfig) -> None:
    """Write recipe.json, from which `read_recipe` makes the same recipe."""
    text = json.dumps(dataclasses.asdict(config), indent=2)
    write_text(folder / "recipe.json", text + "\n")


def read_recipe(folder: Path) -> TrainConfig:
    """Return the recipe a run was started with."""
    path = folder / "recipe.json"
    if not path.is_file():
        raise FileNotFoundError(f"train: nothing to resume, {path} is not there")
    return TrainConfig(**json.loads(path.read_text(encoding="utf-8")))


class Log:
    """Appends events to log.jsonl."""

    def __init__(self, folder: Path):
        self.path = folder / "log.jsonl"

    def __call__(self, event: str, **facts: Any) -> None:
        """Write one line: {"event": …, facts}; floats are rounded to 6 digits."""
        rounded = {
            key: float(f"{value:.6g}") if isinstance(value, float) else value
            for key, value in facts.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **rounded}) + "\n")


def save_state(
    path: Path,
    models: dict[str, nn.Module],
    optimizer: Optimizer,
    counters: dict[str, Any],
    extra: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint: models, the optimizer's memory, counters as metadata."""
    tensors = {f"extra/{key}": value for key, value in (extra or {}).items()}
    for name, model in models.items():
        for key, value in model.state_dict().items():
            tensors[f"{name}/{key}"] = value
    for i, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{i}/{key}"] = value
    tensors = {key: value.detach().clone() for key, value in tensors.items()}
    write_tensors(path, tensors, {"counters": json.dumps(counters)})


def load_state(
    path: Path, models: dict[str, nn.Module], optimizer: Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save_state` wrote into the given objects.

    Returns:
        The counters, and the extra tensors.
    """
    tensors, metadata = read_tensors(path)
    for name, model in models.items():
        model.load_state_dict(_under(tensors, name))
    for i, parameter in enumerate(_parameters(optimizer)):
        memory = _under(tensors, f"optimizer/{i}")
        optimizer.state[parameter] = {
            key: value if key == "step" else value.to(parameter.device)
            for key, value in memory.items()
        }
    return json.loads(metadata["counters"]), _under(tensors, "extra")


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    start = f"{name}/"
    return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
