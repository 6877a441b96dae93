"""The scores of an ablation as a Markdown table, and that table in a page of docs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenflow.training import comparison

NONE = "none"  # no such half
Read = Callable[[dict[str, Any]], float | None]


def _probe(features: str, name: str) -> Read:
    return lambda run: 100 * run[features][name] if features in run else None


COLUMNS: tuple[tuple[str, str, Read], ...] = (
    ("PSNR, dB", ".2f", lambda run: run["psnr"]),
    ("Fréchet, teacher", ".3f", lambda run: run["frechet_teacher"]),
    ("entries used, %", ".1f", lambda run: 100 * run["usage"]),
    ("perplexity", ".0f", lambda run: run["perplexity"]),
    ("kNN, %", ".1f", _probe("whole", "knn")),
    ("linear, %", ".1f", _probe("whole", "linear")),
    ("kNN, semantic half, %", ".1f", _probe("semantic", "knn")),
    ("linear, semantic half, %", ".1f", _probe("semantic", "linear")),
)


def as_markdown(result: dict[str, Any]) -> str:
    """Return the finished runs of an ablation as a table with a sentence above it.

    Args:
        result: What `train_ablation` returned, or ablation.json.

    Raises:
        ValueError: No run is finished.
    """
    runs, recipe = result["runs"], result["recipe"]
    effort = comparison.effort(runs, "pictures")
    guess = 100 * runs[0]["whole"]["majority"]
    judged = recipe["judged"]
    lines = [
        f"{effort} Mean over the seeds, in parentheses the smallest and the largest. "
        f"Redrawn: {judged['pictures']} held-out scenes. Probes: cells with an object "
        f"in {judged['probe_test']} held-out scenes, known from "
        f"{judged['probe_train']}; "
        f"always saying the most frequent name is right in {guess:.1f} %.",
        "",
        "| variant | tokens | bits | " + " | ".join(n for n, _, _ in COLUMNS) + " |",
        "|---|--:|--:|" + "--:|" * len(COLUMNS),
    ]
    for name in recipe["variants"]:
        mine = [run for run in runs if run["variant"] == name]
        if mine:
            lines.append(_row(name, mine))
    return "\n".join(lines) + "\n"


def _row(name: str, runs: list[dict[str, Any]]) -> str:
    cells = [f"`{name}`", str(runs[0]["tokens"]), f"{runs[0]['bits']:.0f}"]
    for _, form, read in COLUMNS:
        values = [value for run in runs if (value := read(run)) is not None]
        cells.append(_cell(values, form))
    return "| " + " | ".join(cells) + " |"


def _cell(values: list[float], form: str) -> str:
    if not values:
        return NONE
    mean = format(sum(values) / len(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):{form}}–{max(values):{form}})"


def write_docs(result: dict[str, Any], page: Path) -> None:
    """Put the table between the two marks of a page; see `comparison.write_docs`."""
    comparison.write_docs(result, as_markdown(result), page)
