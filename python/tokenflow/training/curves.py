"""Curves as SVG, drawn by one small function: no library, no script.

The picture scales with the page, takes its colours from the page's style sheet
(classes line0 … line5 and ramp) and says in words what it shows, for readers who
cannot see it.
"""

import html
import math
from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 18, 24  # of the plot within the picture
MOST = 300  # points of a curve; more are averaged in groups
WIDE = 30.0  # largest value over smallest from which the axis is logarithmic
COLOURS = 6


def chart(
    title: str,
    curves: Mapping[str, Points],
    *,
    marks: Sequence[float] = (),
    ramp: bool = False,
) -> str:
    """Draw curves over steps.

    Points that are not finite are left out. The axis is logarithmic where all values
    are positive and the largest is `WIDE` times the smallest.

    Args:
        title: What is shown, in words.
        curves: Points (step, value) by name, the steps rising.
        marks: Steps at which a dotted line stands, within the curves' range.
        ramp: One colour from faint to strong, for curves that have an order.

    Returns:
        An <svg> element, "" where there is no point.
    """
    finite = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in curves.items()
    }
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return ""
    thin = {name: thinned(points) for name, points in finite.items()}
    values = [y for points in thin.values() for _, y in points]
    steps = [x for points in finite.values() for x, _ in points]
    log = min(values) > 0 and max(values) >= WIDE * min(values)
    across = _Axis(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    if log:
        up = _Axis(
            math.log10(min(values)), math.log10(max(values)), HEIGHT - BOTTOM, TOP
        )
    else:
        low = 0.0 if 0 <= min(values) < 0.4 * max(values) else min(values)
        up = _Axis(low, max(values), HEIGHT - BOTTOM, TOP)

    def place(x: float, y: float) -> str:
        return f"{across(x):.1f} {up(math.log10(y) if log else y):.1f}"

    parts = [_rows(up, log), _columns(across)]
    for mark in marks:
        if across.low <= mark <= across.high:
            parts.append(
                f'<path class="mark" d="M{across(mark):.1f} {TOP}V{HEIGHT - BOTTOM}">'
                f"<title>resumed at step {mark:g}</title></path>"
            )
    for i, (name, points) in enumerate(thin.items()):
        look = f'class="line{i % COLOURS}"'
        if ramp:
            look = f'class="ramp" stroke-opacity="{strength(i, len(thin)):.2f}"'
        path = "M" + "L".join(place(x, y) for x, y in points)
        if len(points) == 1:
            path += "h0.1"  # a dot, by its round ends
        said = html.escape(f"{name}: last {number(finite[name][-1][1])}")
        parts.append(f'<path {look} d="{path}"><title>{said}</title></path>')
    kind = "logarithmic axis" if log else "linear axis"
    said = "; ".join(
        f"{name} from {number(points[0][1])} to {number(points[-1][1])}"
        for name, points in finite.items()
    )
    words = f"Steps {min(steps):g} to {max(steps):g}, {kind}: {said}."
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(f"{title}. {words}")}">'
        f"{''.join(parts)}</svg>"
    )


def strength(i: int, count: int) -> float:
    """Return how strong curve `i` of a ramp is, in (0, 1]; the last one is 1."""
    return 0.35 + 0.65 * (i + 1) / count


def thinned(points: Points) -> list[tuple[float, float]]:
    """Return at most `MOST` points: means over groups, the last one ending the row."""
    size = -(-len(points) // MOST)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups
    ]


def number(value: float) -> str:
    """Return a value as a table shows it: four digits, thousands in full."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4g}"


class _Axis:
    """Values in [low, high] to positions from `start` to `end`."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):  # a flat curve
            margin = abs(low) / 2 or 0.5
            low, high = low - margin, high + margin
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _ticks(low: float, high: float, most: int, least: float = 0.0) -> dict[float, str]:
    """Return round values within [low, high] and their labels, about `most` of them."""
    raw = max((high - low) / most, least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return {step * i: _short(step * i, step) for i in range(first, last + 1)}


def _log_ticks(low: float, high: float) -> dict[float, str]:
    """Return exponents of round values: powers of ten, or 1, 2, 5 times them."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        found = {p + math.log10(d): d * 10.0**p for p in powers for d in digits}
        found = {t: v for t, v in found.items() if low - 1e-9 <= t <= high + 1e-9}
        if len(found) >= 3:
            break
    kept = list(found.items())[:: -(-len(found) // 6)]
    return {t: _short(value, value) for t, value in kept}


def _short(value: float, step: float) -> str:
    """Return a label that tells it from one `step` away: 1500 as 1.5k."""
    size, letter = next(
        ((s, k) for s, k in ((1e6, "M"), (1e3, "k")) if abs(value) >= s <= 100 * step),
        (1.0, ""),
    )
    if abs(value) < step / 2:
        return "0"
    digits = max(0, math.ceil(-math.log10(step / size) - 1e-9))
    if digits > 5 or abs(value) >= 1e9:
        return f"{value:.2g}"
    return f"{value / size:.{digits}f}{letter}"


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def _rows(up: _Axis, log: bool) -> str:
    found = _log_ticks(up.low, up.high) if log else _ticks(up.low, up.high, 5)
    lines = [
        f'<path class="grid" d="M{LEFT} {up(t):.1f}H{WIDTH - RIGHT}"/>'
        + _text(LEFT - 6, up(t) + 4, label, "end")
        for t, label in found.items()
    ]
    return "".join(lines) + (_text(0, 9, "log axis", "start") if log else "")


def _columns(across: _Axis) -> str:
    labels = [
        _text(across(t), HEIGHT - 6, label, "middle")
        for t, label in _ticks(across.low, across.high, 6, least=1.0).items()
    ]
    return "".join(labels) + _text(LEFT - 18, HEIGHT - 6, "step", "end")
