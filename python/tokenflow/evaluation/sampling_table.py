"""Which way of drawing shows best what was asked for: the paper's table, and guidance.

Rows are settings of `generate`, their scores those of `geneval`. The paper's k are of
32768 entries; a smaller book takes the same share of its own, so that as much of the
distribution is cut off. A table may be kept in a file, row by row, and gone on with.
Source: TokenFlow, arXiv:2412.03069, table 6 (the sampling) and section 4.1 (guidance).
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tokenflow._files import writing
from tokenflow.data.scenes.truth import CATEGORIES

ENTRIES = 32768  # of the paper's book
GUIDANCES = (0.0, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0)
PUBLISHED = (  # (k, p) of each look, and the paper's GenEval with its 7B model
    (((1200, 0.8),), 0.502),
    (((1200, 0.8), (1, 0.0)), 0.541),
    (((1200, 0.8), (10, 0.8)), 0.531),
    (((1200, 0.8), (100, 0.8)), 0.529),
    (((1200, 0.8), (100, 0.8), (1, 0.0)), 0.553),
)

Passes = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Setting:
    """One way to draw: a row of a table."""

    guidance: float
    refinement: Passes
    published: float | None = None  # the paper's score of it

    @property
    def name(self) -> str:
        """What a table calls it."""
        looks = ", ".join(f"{k}/{p:g}" for k, p in self.refinement)
        return f"guidance {self.guidance:g}, k/p {looks}"

    def as_json(self) -> dict[str, Any]:
        """Return guidance and refinement as JSON has them, the published if any."""
        passes = [list(entry) for entry in self.refinement]
        found: dict[str, Any] = {"guidance": self.guidance, "refinement": passes}
        return found | ({"published": self.published} if self.published else {})


def scaled(refinement: Sequence[tuple[int, float]], entries: int) -> Passes:
    """Return published passes for a book of another size; k = 1 stays 1."""
    return tuple((math.ceil(k * entries / ENTRIES), p) for k, p in refinement)


def sampling_rows(entries: int, guidance: float) -> list[Setting]:
    """Return the paper's five ways to sample, for a book of so many entries."""
    return [Setting(guidance, scaled(r, entries), score) for r, score in PUBLISHED]


def guidance_rows(refinement: Passes) -> list[Setting]:
    """Return one way to sample at each of GUIDANCES."""
    return [Setting(guidance, refinement) for guidance in GUIDANCES]


def weight_sum(model: nn.Module) -> str:
    """Return a number that another training of the model would not have."""
    return repr(sum(float(p.detach().double().sum()) for p in model.parameters()))


def fill(
    facts: dict[str, Any],
    settings: Sequence[Setting],
    score: Callable[[Setting], dict[str, float]],
    file: Path | None = None,
    same: Sequence[str] = (),
) -> dict[str, Any]:
    """Return facts with the scores of all settings, asking only for those not known.

    Args:
        facts: What was judged, how, and by whom.
        settings: The rows.
        score: Draws and judges one of them.
        file: Where the table is kept after each row, and begun from; None for nowhere.
        same: Keys of facts that a table in the file must agree with.

    Returns:
        facts and "scores": for each setting what it is, and its accuracies as "scores".

    Raises:
        ValueError: The file is of other facts.
    """
    known = [] if file is None else _kept(file, facts, same)
    rows = []
    for setting in settings:
        told = setting.as_json()
        old = next(
            (row for row in known if {**told, "scores": row["scores"]} == row), 0
        )
        rows.append(old or {**told, "scores": score(setting)})
        if file is not None:
            left = [row for row in known if row not in rows]
            text = json.dumps({**facts, "scores": rows + left}, indent=2)
            with writing(file) as beside:
                beside.write_text(text + "\n", encoding="utf-8")
    return {**facts, "scores": rows}


def _kept(
    file: Path, facts: dict[str, Any], same: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the rows of a file that is about these facts."""
    if not file.exists():
        return []
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        rows = held["scores"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} must be a table of scores, it is none") from error
    for key in same:
        if held.get(key) != facts[key]:
            raise ValueError(
                f"{file} must be of {key} {facts[key]!r} to be gone on with, it is of "
                f"{held.get(key)!r}"
            )
    return rows


def as_markdown(result: dict[str, Any]) -> str:
    """Return the result of `fill` as a table to read, in percent."""
    known = result["detector"]["true"]
    names = [name for name in (*CATEGORIES, "mean") if name in known]
    paper = any("published" in row for row in result["scores"])
    head = ["", *(name.replace("_", " ") for name in names)]
    lines = [head + ["paper"] * paper, ["---"] + ["--:"] * (len(names) + paper)]

    def add(name: str, scores: dict[str, float], published: float | None) -> None:
        cells = [name, *(f"{100 * scores[key]:.1f}" for key in names)]
        last = [f"{100 * published:.1f}" if published else ""] * paper
        lines.append(cells + last)

    for row in result["scores"]:
        passes = tuple((k, p) for k, p in row["refinement"])
        name = Setting(row["guidance"], passes).name
        add(name, row["scores"], row.get("published"))
    add("true pictures, redrawn (ceiling)", result["ceiling"], None)
    add("the detector on true pictures", result["detector"]["true"], None)
    add("the detector on spoilt prompts", result["detector"]["spoilt"], None)
    story = (
        f"{result['pictures']} pictures of {result['prompts']} prompts, split "
        f"{result['split']}; right ones in percent\n"
    )
    return "\n".join([story, *(f"| {' | '.join(line)} |" for line in lines)])
