"""A run's page: what the log says, drawn right, safe to open, readable by all."""

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image
from toy_task import Toy, train

from tokenflow.training.curves import MOST, chart, number, thinned
from tokenflow.training.history import history
from tokenflow.training.report import render, write_report
from tokenflow.training.run import RunConfig

SVG = re.compile(r"<svg.*?</svg>", re.DOTALL)


def write_log(folder, *events):
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(event) + "\n" for event in events]
    (folder / "log.jsonl").write_text("".join(lines))


def step(number, **facts):
    return {"event": "step", "step": number, "seconds": 2.0 * number, **facts}


def begun(**facts):
    return {"event": "start", "task": "tokenizer", "seed": 3, "processes": 2, **facts}


# curves


def heights(svg, kind="line0"):
    (path,) = re.findall(rf'class="{kind}" d="M([^"]*)"', svg)
    return [float(point.split()[1]) for point in path.removesuffix("h0.1").split("L")]


def test_a_linear_curve_is_drawn_to_scale():
    svg = chart("t", {"a": [(0, 5.0), (1, 7.0), (2, 9.0)]})
    bottom, middle, top = heights(svg)
    assert bottom > middle > top
    assert bottom - middle == pytest.approx(middle - top, abs=0.11)
    assert "linear axis: a from 5 to 9" in svg


def test_wide_values_get_a_logarithmic_axis():
    svg = chart("t", {"a": [(0, 1.0), (1, 10.0), (2, 100.0)]})
    bottom, middle, top = heights(svg)
    assert bottom - middle == pytest.approx(middle - top, abs=0.11)
    assert "logarithmic axis" in svg
    assert "linear axis" in chart("t", {"a": [(0, 0.0), (1, 10.0), (2, 1000.0)]})


@pytest.mark.parametrize(
    "points",
    [
        [(0, 1.0)],
        [(5, 0.0), (6, 0.0)],
        [(0, float("nan")), (1, 2.0), (2, float("inf"))],
        [(0, 3.0), (1, 3.0)],
        [(0, -2.0), (1, -1e9)],
        [(10**6, 1e-12), (10**6 + 1, 1e12)],
    ],
    ids=str,
)
def test_every_curve_becomes_valid_svg_within_its_frame(points):
    svg = chart("x < y", {"a & b": points}, marks=[points[0][0]])
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img" and root.get("aria-label").startswith("x < y.")
    assert "nan" not in svg and "inf" not in svg
    assert all(0 <= y <= 220 for y in heights(svg))


@pytest.mark.parametrize("values", [(24.31, 24.49), (0.9985, 1.0), (2490.0, 2990.0)])
@pytest.mark.parametrize("steps", [(1, 2), (500, 5000), (999_990, 1_000_010)], ids=str)
def test_no_two_lines_or_steps_have_the_same_label(values, steps):
    svg = chart("t", {"a": [*zip(steps, values, strict=True)]})
    for anchor in ("end", "middle"):  # of values and of steps
        labels = re.findall(rf'text-anchor="{anchor}">([^<]*)<', svg)
        assert len(labels) == len(set(labels)) >= 2
        assert max(map(len, labels)) <= 7  # what there is room for
    assert ">step<" in svg and "log axis" not in svg


def test_a_logarithmic_axis_says_so_and_nought_is_plain():
    assert ">log axis<" in chart("t", {"a": [(0, 1.0), (1, 100.0)]})
    assert ">0<" in chart("t", {"a": [(0, 0.0), (1, 0.07)]})


def test_nothing_to_draw_draws_nothing():
    assert chart("t", {}) == chart("t", {"a": [(0, float("nan"))]}) == ""


def test_long_curves_are_averaged_to_their_end():
    points = [(i, float(i % 2)) for i in range(10 * MOST)]
    thin = thinned(points)
    assert len(thin) == MOST
    assert all(y == 0.5 for _, y in thin)
    assert thin[-1][0] == pytest.approx(10 * MOST - 5.5)


def test_numbers_are_short():
    assert [number(x) for x in (0.123456, 12345.6, 1e-7, 3.0)] == [
        "0.1235",
        "12,346",
        "1e-07",
        "3",
    ]


# what happened


def test_after_a_resumption_the_later_steps_count(tmp_path):
    write_log(
        tmp_path,
        begun(recipe={"run.steps": 6}),
        step(1, loss=9.0),
        step(2, loss=8.0),
        {"event": "heldout", "step": 2, "psnr": 10.0},
        step(3, loss=7.0),
        step(4, loss=6.0),
        {"event": "heldout", "step": 4, "psnr": 11.0},
        {"event": "resume", "step": 2, "seconds": 4.0, "recipe": {"run.steps": 9}},
        step(3, loss=5.0),
        {"event": "heldout", "step": 3, "psnr": 12.0},
    )
    run = history(tmp_path)
    assert run.curve("loss") == [(1, 9.0), (2, 8.0), (3, 5.0)]
    assert run.curve("psnr", run.heldout) == [(2, 10.0), (3, 12.0)]
    assert run.resumptions == [2] and run.end is None
    assert run.start["recipe"] == {"run.steps": 9} and run.start["seed"] == 3
    page = render(tmp_path, tmp_path)
    assert "Resumed at" in page and "step 2" in page
    assert "resumed at step 2" in page  # the line in the curves


def test_speed_is_samples_between_two_lines_of_the_log(tmp_path):
    write_log(
        tmp_path,
        begun(),
        {"event": "step", "step": 10, "seconds": 20.0},
        {"event": "step", "step": 30, "seconds": 30.0},
    )
    assert history(tmp_path).speed(batch=4) == [(10, 2.0), (30, 8.0)]


def test_a_run_cut_short_or_begun_anew_is_read(tmp_path):
    write_log(tmp_path, begun(), step(1, loss=1.0), begun(), step(1, loss=2.0))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "st')
    assert history(tmp_path).curve("loss") == [(1, 2.0)]
    assert "not finished" in render(tmp_path, tmp_path)


# the page


class Page(HTMLParser):
    """Collects what a browser would fetch, and checks that tags close."""

    EMPTY = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.sources, self.alts = [], [], [], []
        self.tags = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.add(tag)
        self.sources += [found[k] for k in ("src", "srcset", "data") if k in found]
        self.links += [found["href"]] if "href" in found else []
        if tag == "img":
            self.alts.append(found["alt"])
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def full(tmp_path):
    """A run with everything in it, and a name that wants escaping."""
    folder = tmp_path / "a <run> & more"
    facts = {"loss": 1.0, "entropy": 0.0, "gradient": 2.0, "rate": 1e-4}
    facts |= {"discriminator/loss": 0.7, "discriminator/gradient": 3.0}
    facts |= {"usage": 0.5, "usage/1x1": 0.1, "usage/8x8": 0.4, "perplexity": 60.0}
    facts |= {"perplexity/1x1": 5.0, "revived": 2.0, "dead": 1.0, "broken": 3}
    write_log(
        folder,
        begun(recipe={"data.source": "<b>mine</b>"}),
        *[step(i, **facts) for i in range(1, 9)],
        {"event": "heldout", "step": 8, "seconds": 16.0, "psnr": 21.5},
        {"event": "end", "steps": 8},
    )
    recipe = {"data": {"source": "<b>mine</b>"}, "run": {"batch": 4, "steps": 8}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "pictures").mkdir()
    for i in range(20):
        picture = Image.new("RGB", (8, 8) if i else (4000, 500), (10 * i, 0, 0))
        picture.save(folder / "pictures" / f"heldout-{i:08d}.png")
    (folder / "pictures" / "heldout-00000999.png").write_bytes(b"not yet whole")
    (folder / "model").mkdir()
    return folder


def test_the_page_holds_everything_and_fetches_nothing(full):
    text = write_report(full).read_text()
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags
    assert page.sources and all(s.startswith("data:image/png;") for s in page.sources)
    assert "http" not in text.replace("http-equiv", "") and "@import" not in text
    assert "url(" not in text
    assert page.links == ["model", "recipe.yaml", "log.jsonl", "pictures"]
    assert all(page.alts)
    for words in ("finished", "8 of 8", "Broken pictures</dt><dd>3", "psnr", "8×8"):
        assert words in text
    assert "Always 0: entropy." in text
    assert "<b>mine" not in text and "&lt;b&gt;mine" in text
    assert "<h1>tokenizer: a &lt;run&gt; &amp; more</h1>" in text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_every_curve_of_a_run_is_drawn_once(full):
    text = write_report(full).read_text()
    labels = [
        ElementTree.fromstring(svg).get("aria-label").split(". Steps")[0]
        for svg in SVG.findall(text)
    ]
    assert labels == [
        "psnr, dB",
        "loss",
        "discriminator/loss",
        "usage, all scales",
        "usage by scale, coarse (faint) to fine",
        "perplexity, all scales",
        "perplexity by scale, coarse (faint) to fine",
        "entries woken, and unused ones left",
        "learning rate",
        "gradient norm before clipping",
        "samples per second, judging and saving included",
    ]


def test_held_out_scores_of_scales_share_a_chart(tmp_path):
    scores = {"loss": 4.0, "loss_1x1": 3.0, "loss_8x8": 5.0, "accuracy": 0.5}
    write_log(tmp_path, begun(), {"event": "heldout", "step": 8, **scores})
    charts = SVG.findall(render(tmp_path, tmp_path))
    labels = [ElementTree.fromstring(svg).get("aria-label") for svg in charts]
    assert [label.split(". Steps")[0] for label in labels] == [
        "loss, all scales",
        "loss by scale, coarse (faint) to fine",
        "accuracy",
    ]
    assert "1×1 from 3 to 3; 8×8 from 5 to 5" in labels[1]


def test_a_sheet_is_told_in_words(full):
    Image.new("RGB", (8, 8)).save(full / "pictures" / "drawn-00000003.png")
    alts = Page(write_report(full).read_text()).alts
    assert "at step 0: held-out pictures, and below each what was redrawn" in alts
    assert any(alt.endswith("what was drawn of its caption") for alt in alts)


def test_first_last_and_some_pictures_are_shown_and_large_ones_shrink(full):
    page = Page(write_report(full).read_text())
    steps = [
        int(re.search(r"step ([\d,]+)", alt)[1].replace(",", "")) for alt in page.alts
    ]
    assert steps[0] == 0 and len(steps) == 5  # the sixth is not whole
    assert steps == sorted(steps)
    assert len(page.sources[0]) < 30_000


def test_links_lead_from_the_page_to_the_run(full, tmp_path):
    page = write_report(full, tmp_path / "pages" / "one.html")
    (link, *_) = Page(page.read_text()).links
    assert (page.parent / link).resolve() == (full / "model").resolve()


def test_any_tasks_run_has_a_page_while_it_goes_on(tmp_path):
    run = tmp_path / "run"
    train(
        Toy(RunConfig(batch=4, steps=3, log_every=1)),
        RunConfig(batch=4, steps=3, log_every=1, tensorboard=False),
        run,
    )
    text = write_report(run).read_text()
    Page(text)
    assert "finished" in text and "drawn" in text and "answer" in text
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    for many in range(1, len(lines)):  # as the page would have been at each moment
        (run / "log.jsonl").write_text("".join(lines[:many]))
        Page(write_report(run).read_text())


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is .* a training run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
