"""What became of a claim's inputs: shares, their intervals and ratios, as a table.

A question's score is the share of a variant's seeds that answer it rightly; intervals
(95 %) are over the questions: Wilson's for a share; for a ratio of two variants, whose
questions are the same, that of a ratio of paired means by its linear expansion.
"""

import math
from pathlib import Path
from typing import Any

from tokenflow.evaluation.questions import interval
from tokenflow.training import comparison

ALL = "all"
SIDES = 1.959964  # of a normal distribution's middle 95 %


def compared(result: dict[str, Any]) -> dict[str, Any]:
    """Return each variant's scores, of the runs that are finished.

    Args:
        result: Of `train_claim`: its "recipe" and "runs".

    Returns:
        By variant and kind of question ("all" for all of them): "questions", "exact"
        (share), "interval" [low, high], "seeds" (the share of each), "ratio" to the
        variant that is the measure and "ratio_interval", None where that has no run or
        no right answer; "majority".
    """
    recipe = result["recipe"]
    rows = {name: _rows(result, name) for name in recipe["variants"]}
    measure = rows[recipe["measure"]]
    found: dict[str, Any] = {}
    for name, kinds in rows.items():
        found |= {name: {}} if kinds else {}
        for kind, runs in kinds.items():
            marks = _mean(runs)
            exact = sum(marks) / len(marks)
            beside = _ratio(marks, _mean(measure[kind])) if kind in measure else None
            found[name][kind] = {
                "questions": len(marks),
                "exact": exact,
                "interval": list(interval(exact * len(marks), len(marks))),
                "seeds": [sum(run) / len(run) for run in runs],
                "ratio": beside and beside[0],
                "ratio_interval": beside and [beside[0] - beside[1], sum(beside)],
                "majority": _majority(result["runs"][0]["kinds"], kind),
            }
    return found


def _rows(result: dict[str, Any], variant: str) -> dict[str, list[list[int]]]:
    """Return by kind, and for all, which questions each run answers rightly."""
    found: dict[str, list[list[int]]] = {}
    for run in result["runs"]:
        if run["variant"] != variant:
            continue
        every: list[int] = []
        for kind, row in sorted(run["kinds"].items()):
            marks = [int(mark) for mark in row["right"]]
            found.setdefault(kind, []).append(marks)
            every += marks
        found.setdefault(ALL, []).append(every)
    return found


def _mean(runs: list[list[int]]) -> list[float]:
    return [sum(marks) / len(marks) for marks in zip(*runs, strict=True)]


def _ratio(marks: list[float], measure: list[float]) -> tuple[float, float] | None:
    """Return the ratio of two means and how far its interval reaches."""
    count, below = len(marks), sum(measure)
    if not below:
        return None
    ratio = sum(marks) / below
    pairs = zip(marks, measure, strict=True)
    spread = sum((one - ratio * other) ** 2 for one, other in pairs)
    spread *= count / max(1, count - 1)
    return ratio, SIDES * math.sqrt(spread) / below


def _majority(kinds: dict[str, Any], kind: str) -> float:
    if kind != ALL:
        return kinds[kind]["majority"]
    right = sum(row["majority"] * len(row["right"]) for row in kinds.values())
    return right / sum(len(row["right"]) for row in kinds.values())


def as_markdown(result: dict[str, Any]) -> str:
    """Return the finished runs as a table with a sentence above it.

    Args:
        result: What `train_claim` returned, or claim.json.

    Raises:
        ValueError: No run is finished.
    """
    runs, recipe = result["runs"], result["recipe"]
    effort = comparison.effort(runs, "conversations")
    found = compared(result)
    first = next(iter(found.values()))
    kinds = [kind for kind in first if kind != ALL]
    columns = (ALL, f"all, of `{recipe['measure']}`", *kinds)
    lines = [
        f"{effort} Right answers to {first[ALL]['questions']} questions about scenes "
        f"of the split {recipe['judged']['split']}, in %: mean over the seeds, in "
        "parentheses the 95 % interval over the questions. `most frequent` always "
        "says the most frequent answer to a kind of question.",
        "",
        "| input | positions × numbers | " + " | ".join(columns) + " |",
        "|---|--:|" + "--:|" * len(columns),
    ]
    for name, row in found.items():
        run = next(run for run in runs if run["variant"] == name)
        size = f"{run['positions']} × {run['numbers']}" if run["positions"] else "none"
        cells = [_cell(row[kind]["exact"], row[kind]["interval"]) for kind in kinds]
        every = row[ALL]
        whole = _cell(every["exact"], every["interval"])
        beside = _cell(every["ratio"], every["ratio_interval"])
        lines.append(_line(f"`{name}`", size, whole, beside, *cells))
    most = [_cell(first[kind]["majority"]) for kind in kinds]
    lines.append(
        _line("most frequent", "none", _cell(first[ALL]["majority"]), "", *most)
    )
    return "\n".join(lines) + "\n"


def _cell(share: float | None, around: list[float] | None = None) -> str:
    if share is None:
        return ""
    if around is None:
        return f"{100 * share:.1f}"
    low, high = around
    return f"{100 * share:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def write_docs(result: dict[str, Any], page: Path) -> None:
    """Put the table between the two marks of a page; see `comparison.write_docs`."""
    comparison.write_docs(result, as_markdown(result), page)
