"""A run on one page: curves, held-out pictures, the recipe and the facts.

The page is one HTML file that needs nothing else, neither a network nor a script:
curves are SVG (see `curves`), pictures are inside it. It is made of what any run
writes, so it serves every task, while a run goes on as well as after it.
"""

import base64
import html
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from tokenflow._files import writing
from tokenflow.training.config import RECIPE
from tokenflow.training.curves import COLOURS, chart, number, strength
from tokenflow.training.history import History, history
from tokenflow.training.log import LOG

PAGE = "report.html"
SHOWN = 6  # pictures of one kind
WIDEST = 1600  # pixels of a picture on the page
CLOCK = ("event", "step", "seconds", "broken")  # of a line of the log
OPTIMIZER = ("gradient", "rate")
CODEBOOK = ("usage", "perplexity", "revived", "dead")
TITLES = {"psnr": "psnr, dB"}
SHEETS = {  # kinds of pictures
    "heldout": "held-out pictures, and below each what was redrawn",
    "drawn": "held-out pictures, and below each what was drawn of its caption",
}
STYLE = Path(__file__).with_name("report.css")


def write_report(folder: Path, page: Path | None = None) -> Path:
    """Write the page of a run and return its path.

    Args:
        folder: RUN, of any task, finished or not.
        page: Where to; RUN/report.html when None.

    Raises:
        FileNotFoundError: The folder holds no run.
    """
    page = page or folder / PAGE
    text = render(folder, page.absolute().parent)
    with writing(page) as beside:
        beside.write_text(text, encoding="utf-8")
    return page


def render(folder: Path, place: Path) -> str:
    """Return the page's HTML, its links relative to the folder `place`."""
    import yaml

    run = history(folder)
    path = folder / RECIPE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    recipe = yaml.safe_load(text) or {}
    task = run.start.get("task") or "training"
    title = f"{task}: {folder.absolute().name}"
    sections = {
        "Held-out scores": _heldout(run),
        "Pictures": _pictures(folder / "pictures"),
        "Losses": _losses(run),
        "Codebook": _codebook(run),
        "Optimizer and speed": _optimizer(run, _batch(recipe)),
        "Recipe": _recipe(run, text),
        "Files": _files(folder, place),
    }
    body = "".join(
        f'<section aria-label="{name}"><h2>{name}</h2>{inside}</section>'
        for name, inside in sections.items()
        if inside
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{_safe(title)}</title><style>{STYLE.read_text(encoding='utf-8')}"
        f"</style></head><body><main><h1>{_safe(title)}</h1>"
        f"{_facts(run, recipe)}{body}</main></body></html>\n"
    )


def _safe(value: Any) -> str:
    return html.escape(str(value))


def _batch(recipe: Mapping[str, Any]) -> int:
    return (recipe.get("run") or {}).get("batch") or 1


# what is at the top


def _facts(run: History, recipe: Mapping[str, Any]) -> str:
    limits = recipe.get("run") or {}
    step, seconds = run.last("step", 0), run.last("seconds", 0.0)
    of = f" of {limits['steps']:,}" if limits.get("steps") else ""
    samples = step * _batch(recipe)
    facts = {
        "State": "finished" if run.end else "not finished",
        "Steps": f"{step:,}{of}",
        "Samples": f"{samples:,}",
        "Time": _time(seconds),
        "Samples per second": number(samples / seconds) if seconds else "",
        "Broken pictures": f"{run.last('broken', 0):,}",
        "Processes": run.start.get("processes", ""),
        "Seed": run.start.get("seed", ""),
        "Resumed at": ", ".join(f"step {at:,}" for at in run.resumptions),
    }
    rows = "".join(
        f"<div><dt>{name}</dt><dd>{_safe(value)}</dd></div>"
        for name, value in facts.items()
        if value != ""
    )
    return f'<dl class="facts">{rows}</dl>'


def _time(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


# curves


def _figure(
    title: str,
    curves: Mapping[str, list[tuple[float, float]]],
    marks: Iterable[float] = (),
    *,
    ramp: bool = False,
) -> str:
    """Return a chart with its title and legend, "" where nothing was logged."""
    curves = {name: points for name, points in curves.items() if points}
    drawn = chart(title, curves, marks=tuple(marks), ramp=ramp)
    if not drawn:
        return ""
    if len(curves) == 1:
        ((_, points),) = curves.items()
        legend = f'<span class="last">{number(points[-1][1])}</span>'
    else:
        legend = "".join(
            f'<span class="key">{_swatch(i, len(curves), ramp)}{_safe(name)} '
            f"<b>{number(points[-1][1])}</b></span>"
            for i, (name, points) in enumerate(curves.items())
        )
    return (
        f"<figure><figcaption><h3>{_safe(title)}</h3><p>{legend}</p></figcaption>"
        f"{drawn}</figure>"
    )


def _swatch(i: int, count: int, ramp: bool) -> str:
    """Return a short line that looks like curve `i`."""
    if ramp:
        return f'<i class="ramp" style="opacity:{strength(i, count):.2f}"></i>'
    return f'<i class="line{i % COLOURS}"></i>'


def _figures(figures: Iterable[str]) -> str:
    inside = "".join(figures)
    return f'<div class="figures">{inside}</div>' if inside else ""


def _names(events: list[dict[str, Any]]) -> list[str]:
    """Return the names of all numbers that were logged, in order of appearance."""
    return list(
        dict.fromkeys(
            name
            for event in events
            for name, value in event.items()
            if name not in CLOCK and isinstance(value, int | float)
        )
    )


def _by_scale(
    run: History, names: Iterable[str], events: list[dict[str, Any]]
) -> Iterator[str]:
    """Yield a chart of each fact, and behind it one of what it is at each scale."""
    facts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name in names:
        match = re.fullmatch(r"(.+)[/_](\d+)x(\d+)", name)
        fact, scale = (match[1], f"{match[2]}×{match[3]}") if match else (name, "")
        facts.setdefault(fact, {})[scale] = run.curve(name, events)
    for fact, scales in facts.items():
        whole = {fact: scales.pop("", [])}
        title = f"{fact}, all scales" if scales else TITLES.get(fact, fact)
        yield _figure(title, whole, run.resumptions)
        title = f"{fact} by scale, coarse (faint) to fine"
        yield _figure(title, scales, run.resumptions, ramp=True)


def _heldout(run: History) -> str:
    return _figures(_by_scale(run, _names(run.heldout), run.heldout))


def _losses(run: History) -> str:
    """Return every term's curve; what was 0 all the time is only named."""
    other = re.compile(rf"(.*/)?({'|'.join(OPTIMIZER)})|({'|'.join(CODEBOOK)})(/.*)?")
    names = [name for name in _names(run.steps) if not other.fullmatch(name)]
    zero = [name for name in names if not any(y for _, y in run.curve(name))]
    drawn = _figures(
        _figure(name, {name: run.curve(name)}, run.resumptions)
        for name in names
        if name not in zero
    )
    if zero:
        drawn += f"<p>Always 0: {_safe(', '.join(zero))}.</p>"
    return drawn


def _codebook(run: History) -> str:
    """Return usage and perplexity, in all and by scale, and what was woken."""
    names = _names(run.steps)
    shown = [name for name in names if re.fullmatch(r"(usage|perplexity)(/.*)?", name)]
    figures = [*_by_scale(run, shown, run.steps)]
    idle = {name: run.curve(name) for name in ("revived", "dead") if name in names}
    figures.append(
        _figure("entries woken, and unused ones left", idle, run.resumptions)
    )
    return _figures(figures)


def _optimizer(run: History, batch: int) -> str:
    titles = {"rate": "learning rate", "gradient": "gradient norm before clipping"}
    names = _names(run.steps)
    figures = []
    for fact, title in titles.items():
        found = {
            name.removesuffix(fact).rstrip("/") or "model": run.curve(name)
            for name in names
            if name == fact or name.endswith(f"/{fact}")
        }
        figures.append(_figure(title, found, run.resumptions))
    speed = {"speed": run.speed(batch)}
    title = "samples per second, judging and saving included"
    return _figures([*figures, _figure(title, speed, run.resumptions)])


# pictures


def _pictures(folder: Path) -> str:
    """Return the first, the last and some pictures between, of every kind."""
    kinds: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(folder.glob("*.png")):
        match = re.fullmatch(r"(.+)-(\d+)", path.stem)
        if match:
            kinds.setdefault(match[1], []).append((int(match[2]), path))
    shown = ""
    for kind, pictures in kinds.items():
        many = min(SHOWN, len(pictures))
        places = {
            round(i * (len(pictures) - 1) / max(1, many - 1)) for i in range(many)
        }
        shown += "".join(_picture(kind, *pictures[i]) for i in sorted(places))
    return shown


def _picture(kind: str, step: int, path: Path) -> str:
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except OSError:  # it is being written, or is damaged
        return ""
    if picture.width > WIDEST:
        picture.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    picture.save(held, format="PNG", optimize=True)
    data = base64.b64encode(held.getvalue()).decode()
    where = f"at step {step:,}"
    words = f"{where}: {_safe(SHEETS.get(kind, kind))}"
    return (
        f'<figure class="picture"><figcaption>{words.capitalize()}</figcaption>'
        f'<div class="scroll" tabindex="0" role="group" aria-label="Pictures {where}">'
        f'<img width="{picture.width}" height="{picture.height}" alt="{words}" '
        f'src="data:image/png;base64,{data}"></div></figure>'
    )


# recipe and files


def _recipe(run: History, text: str) -> str:
    changed = run.start.get("recipe") or {}
    rows = "".join(
        f"<tr><th scope=row><code>{_safe(name)}</code></th>"
        f"<td><code>{_safe(_yaml(value))}</code></td></tr>"
        for name, value in changed.items()
    )
    table = (
        '<div class="scroll"><table><caption>What differs from the defaults</caption>'
        f"{rows}</table></div>"
        if rows
        else ""
    )
    whole = (
        f"<details><summary>All of it</summary><pre>{_safe(text)}</pre></details>"
        if text
        else ""
    )
    return table + whole


def _yaml(value: Any) -> Any:
    """Return a value as --set takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _files(folder: Path, place: Path) -> str:
    """Return links to what the run wrote, where it is there."""
    words = {
        "model": "the trained model, for <code>from_pretrained</code> and "
        "<code>--model</code>",
        "teacher": "the trained teacher",
        RECIPE: "the recipe",
        LOG: "every logged number",
        "pictures": "all held-out pictures",
        "tensorboard": "events, for <code>tensorboard --logdir</code>",
        "checkpoints": "what <code>--resume</code> goes on from",
    }
    rows = ""
    for name, meaning in words.items():
        if (folder / name).exists():
            link = Path(os.path.relpath(folder.absolute() / name, place)).as_posix()
            rows += f'<li><a href="{_safe(link)}">{name}</a>: {meaning}</li>'
    return f"<ul>{rows}</ul>"
