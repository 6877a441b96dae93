"""Results as text: what ours is worth, then everybody's time."""

from collections.abc import Iterable
from typing import Any

from tokenflow.benchmark.ceilings import UNITS
from tokenflow.benchmark.harness import Result, Row

_DASH = "–"


def as_text(
    op: str, results: list[Result], machine: dict[str, Any], story: str = ""
) -> str:
    """Return the two tables of an op, in Markdown."""
    facts = ", ".join(f"{k} {v}" for k, v in machine.items() if v is not None)
    parts = [f"## {op}", f"{story}\n" if story else "", f"{facts}\n"]
    parts.append(_table(_HEAD, [line for r in results for line in _summary(r)]))
    parts.append("")
    names = list(dict.fromkeys(row.name for r in results for row in r.rows))
    methods = [[name, *(_cell(r, name) for r in results)] for name in names]
    parts.append(_table(["median ms", *(r.label for r in results)], methods))
    parts += ["", *_remarks(results)]
    return "\n".join(part for part in parts if part is not None)


_HEAD = [
    "case",
    "ours",
    "ms",
    "out=",
    "best peer",
    "ratio",
    "published",
    "ratio",
    "share of ceiling",
    "against float64",
    "extra memory",
    "samples",
]


def _summary(result: Result) -> Iterable[list[str]]:
    peers, published = result.of("peer", "published"), result.of("published")
    best = peers[0] if peers else None
    form = published[0] if published else None
    filled = {row.fills: row for row in result.rows if row.fills}
    for row in result.rows:
        if row.kind != "ours" or row.fills:
            continue
        out = filled.get(row.name)
        yield [
            result.label,
            row.name,
            _time(row),
            _time(out) if out else _DASH,
            f"{best.name}, {_time(best)}" if best else _DASH,
            _pair(result, row, out, best),
            f"{form.name}, {_time(form)}" if form else _DASH,
            _pair(result, row, out, form),
            ", ".join(f"{k} {v:.0%}" for k, v in result.shares(row).items()) or _DASH,
            _verdict(row, form),
            _bytes(row.facts.get("extra")),
            _samples(row),
        ]


def _pair(result: Result, row: Row, out: Row | None, other: Row | None) -> str:
    """Ratio of ours, and of ours with out= where there is that."""
    ratios = [result.ratio(r, other) for r in (row, out) if r is not None]
    return " / ".join(_DASH if r is None else f"{r:.2f}" for r in ratios)


def _time(row: Row) -> str:
    if row.problem:
        return row.problem
    if row.median is None:
        return f"too few clean samples ({len(row.clean)} of {len(row.samples)})"
    return number(row.median * 1e3)


def number(value: float) -> str:
    """Three digits that matter."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 1 else f"{value:.4f}".rstrip("0")


def _verdict(row: Row, form: Row | None) -> str:
    verdict = row.facts.get("verdict") or {}
    if "mismatches" in verdict:
        return f"{verdict['mismatches']} of {verdict['judged']} wrong"
    if "error" in verdict:
        beside = ((form.facts.get("verdict") or {}) if form else {}).get("error")
        said = f", {form.name} {beside:.1e}" if form and beside is not None else ""
        return f"{verdict['error']:.1e}{said}"
    return _DASH


def _bytes(count: int | None) -> str:
    if count is None:
        return _DASH
    return f"{count / 2**20:.1f} MiB"


def _samples(row: Row) -> str:
    return f"{len(row.clean)} of {len(row.samples)}"


def _cell(result: Result, name: str) -> str:
    found = [row for row in result.rows if row.name == name]
    if not found:
        return _DASH
    wrong = "" if found[0].right else " (another answer)"
    return _time(found[0]) + wrong


def _remarks(results: list[Result]) -> Iterable[str]:
    for result in results:
        rates = ", ".join(
            f"{name} {rate / 1e9:.0f} {UNITS[name]}"
            for name, rate in result.ceilings.items()
        )
        spread = result.spread()
        chance = "unknown" if spread is None else f"{spread:.1%}"
        yield f"{result.label}: ceilings {rates or 'unknown'}; A against A {chance}"
        for row in result.rows:
            if row.problem:
                yield f"  {row.name}: {row.problem}"
            elif not row.right:
                yield f"  {row.name}: {_verdict(row, None)}, no answer to this question"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
