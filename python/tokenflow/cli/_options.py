"""What several commands share: their options, loading a model, how results are said."""

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
BOTH = ("TokenFlowForGeneration", "TokenFlowForUnderstanding")
UNIFIED = "TokenFlowUnified"

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="A shipped name, a folder, or a hub id."),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1 …; cuda where there is one when not given."),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", "-b", min=1, help="Pictures at a time.")
]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder for the results; made if need be.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace results that are there already.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def load_model(
    name: str, device: str | None = None, kind: str = "TokenFlowTokenizer"
) -> Any:
    """Return the tokenizer, or a model of another kind, ready to use.

    What is kept in float16 runs in float32 on a CPU, which is faster there.

    Args:
        name: A shipped name, a folder, or a hub id.
        device: Where to put it.
        kind: Name of its class at the top of `tokenflow`; a unified model here stands
            for the two that it is in one.

    Raises:
        typer.BadParameter: The device is no device's name.
        OSError: There is no such model or device, or its weights do not fit.
    """
    import torch

    import tokenflow

    where = _device(device)
    place: str | Path = name
    if kind in BOTH and (folder := _unified(name)) is not None:
        kind, place = UNIFIED, folder
    try:
        model = getattr(tokenflow, kind).from_pretrained(place).eval()
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0].removeprefix("from_pretrained: ")
        raise OSError(f"the model {name!r} cannot be loaded: {first}") from error
    if where.type == "cpu" and model.dtype == torch.float16:
        model = model.float()
    try:
        return model.to(where)
    except (RuntimeError, AssertionError) as error:  # each backend in its own way
        first = str(error).strip().splitlines()[0]
        raise OSError(f"the model cannot be put on {where}: {first}") from error


def _unified(name: str) -> Path | None:
    """Return the folder of a unified model, None if it is something else."""
    from tokenflow.checkpoint import shipped

    folder = shipped(name) or Path(name)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return folder if config.get("model_type") == "tokenflow_unified" else None


def _device(name: str | None) -> "torch.device":
    import torch

    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise typer.BadParameter(f"--device: no such kind of device: {name}") from None


def progress(items: Iterable[T], total: int, unit: str, advance: Any = len) -> Any:
    """Yield the items, showing a bar on stderr where that is a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, disable=None, file=sys.stderr) as bar:
        for item in items:
            yield item
            bar.update(advance(item))


def say_json(result: Any) -> None:
    """Print one JSON object; what is infinite or no number (JSON has none) is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    typer.echo(json.dumps(plain(result), indent=2, allow_nan=False))


def note(text: str) -> None:
    """Say something that is no result."""
    typer.echo(text, err=True)


@dataclass
class Report:
    """What came of each input; printed at the end and turned into the exit status."""

    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)

    def fail(self, source: Path, error: Exception) -> None:
        """Record why an input could not be worked on."""
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = " ".join(words.split()).removeprefix("open_image: ")
        reason = reason.removeprefix(f"{source} ")  # it is said before the reason
        self.failed.append({"input": str(source), "reason": reason})

    def finish(self, summary: dict[str, Any], line: str, as_json: bool) -> None:
        """Print, and leave with status 1 where inputs failed.

        Args:
            summary: What else a program may want to know.
            line: A format string for one finished input.
            as_json: Print one JSON object rather than lines.
        """
        for entry in self.failed:
            note(f"failed: {entry['input']}: {entry['reason']}")
        if as_json:
            say_json({**summary, "done": self.done, "failed": self.failed})
        else:
            for entry in self.done:
                typer.echo(line.format(**entry))
        if self.failed:
            note(f"{len(self.failed)} of {len(self.failed) + len(self.done)} failed")
            raise typer.Exit(1)
