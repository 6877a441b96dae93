"""The ablation: variants differ in what they say, runs are kept, the table is right."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_ablation import TEACHER, recipe, values

from tokenflow.training import ablation_table, comparison
from tokenflow.training.ablation import AblationRecipe, train_ablation
from tokenflow.training.config import build, load
from tokenflow.training.log import read
from tokenflow.training.task import Moment
from tokenflow.training.teacher import TeacherRecipe, train_teacher
from tokenflow.training.tokenizer import TokenizerTask, build_model
from tokenflow.training.world import World

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quiet(emoji_font, threads):
    threads(1)  # networks this small are not worth waking a second one


@pytest.fixture(scope="session")
def teacher(tmp_path_factory, emoji_font):
    folder = tmp_path_factory.mktemp("teacher")
    train_teacher(build(TeacherRecipe, TEACHER), folder)
    return folder / "model"


def shipped():
    return load(AblationRecipe, "scenes")


def test_the_variants_that_ship_differ_in_what_they_are_about():
    found = shipped()
    runs = {name: found.run(name, 1, "T") for name in found.variants}
    configs = {name: run.config() for name, run in runs.items()}
    assert {c.semantic_dim + c.pixel_dim for c in configs.values()} == {24}
    tokens = {name: c.num_tokens for name, c in configs.items()}
    deep, pyramid = tokens.pop("two_books_deep"), tokens.pop("pyramid")
    assert (deep, pyramid, tokens.pop("teacher_start")) == (192, 204, 204)
    assert set(tokens.values()) == {64}
    taught = {name for name, run in runs.items() if run.teacher.source == "T"}
    assert taught == runs.keys() - {"pixel_only"}
    assert not runs["pixel_only"].teacher.source
    assert {n for n, run in runs.items() if run.teacher.start} == {"teacher_start"}
    same = {
        json.dumps(
            dataclasses.asdict(dataclasses.replace(run, model={}, teacher=None)),
            sort_keys=True,
        )
        for run in runs.values()
    }
    assert len(same) == 1  # nothing else differs
    assert all(run.run.seed == 1 and run.run.minutes is None for run in runs.values())


def test_the_teacher_that_ships_can_be_what_an_encoder_starts_as():
    found = shipped()
    encoder = found.run("teacher_start", 0, "T").config().semantic_encoder
    teacher = found.teacher.read(TeacherRecipe)
    assert teacher.model.encoder == encoder
    assert teacher.model.width == found.run("pyramid", 0, "T").config().semantic_target
    assert teacher.run.minutes is None


def changed(model, part):
    """Indices before and after one part of the model is another one."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 32, 32, generator=generator) * 2 - 1
    before = model.encode(images).indices
    with torch.no_grad():
        for weight in getattr(model, part).parameters():
            weight.add_(torch.randn(weight.shape, generator=generator))
    return not torch.equal(model.encode(images).indices, before)


@pytest.mark.parametrize(
    ("name", "deciding"),
    [
        ("one_book", {"semantic_encoder"}),
        ("semantic_only", {"semantic_encoder"}),
        ("pixel_only", {"pixel_encoder"}),
        ("two_books", {"semantic_encoder", "pixel_encoder"}),
    ],
)
def test_an_index_is_decided_by_the_halves_a_variant_has(name, deciding):
    run = recipe().run(name, 0, "T")
    encoders = ("semantic_encoder", "pixel_encoder")
    model = build_model(run).eval()
    assert {p for p in encoders if getattr(model, p) is not None} == deciding
    for part in deciding:
        assert changed(build_model(run).eval(), part), part


def learning(run):
    """Which parts take a gradient, from the teacher's term and from the redrawn."""
    task = TokenizerTask(run, World())
    batch = next(task.batches(0, World()))
    moment = Moment(0, 0.0, 0, World())
    found = {}
    for term in ("semantic", "reconstruction"):
        task.model.zero_grad(set_to_none=True)
        losses = task.loss("model", task.model, batch, moment)
        if losses[term].requires_grad:
            losses[term].backward()
        found[term] = {
            n.split(".")[0]
            for n, p in task.model.named_parameters()
            if p.grad is not None and p.grad.abs().sum() > 0
        }
    return found


def test_who_learns_from_what(teacher):
    def of(name):
        return learning(recipe().run(name, 0, str(teacher)))

    meaning = {"semantic_encoder", "semantic_head"}
    rebuilding = {"semantic_decoder", "semantic_target_head"}
    redrawing = {"pixel_decoder", "post_quant_conv"}
    assert of("one_book") == {
        "semantic": meaning | rebuilding,
        "reconstruction": meaning | redrawing,
    }
    assert of("semantic_only") == {
        "semantic": meaning | rebuilding,
        "reconstruction": redrawing,
    }
    look = {"pixel_encoder", "quant_conv"}
    assert of("pixel_only") == {"semantic": set(), "reconstruction": look | redrawing}
    assert of("two_books") == {
        "semantic": meaning | rebuilding,
        "reconstruction": look | redrawing,
    }


@pytest.mark.slow
def test_a_run_is_made_once_and_only_with_its_recipe_and_teacher(tmp_path, teacher):
    two = {k: values()["variants"][k] for k in ("one_book", "pixel_only")}
    one = recipe(variants=two, seeds=[0])
    said = []
    first = train_ablation(
        one, tmp_path, teacher=teacher, only=["pixel_only"], say=said.append
    )
    assert said == ["pixel_only, seed 0"]
    (run,) = first["runs"]
    assert run["tokens"] == 16 and run["bits"] == 16 * 7 and run["steps"] == 3
    assert "semantic" not in run and 0 <= run["whole"]["knn"] <= 1
    assert run["psnr"] > 3 and run["frechet_teacher"] > 0
    moved = tmp_path.parent / "moved"
    shutil.copytree(teacher, moved)
    again = train_ablation(one, tmp_path, teacher=moved, say=said.append)
    assert said == ["pixel_only, seed 0", "one_book, seed 0"]
    assert [r["variant"] for r in again["runs"]] == ["one_book", "pixel_only"]
    assert again["runs"][1] == run
    assert json.loads((tmp_path / "ablation.json").read_text())["runs"] == again["runs"]
    longer = values(variants=two, seeds=[0])
    longer["tokenizer"]["run"]["steps"] = 4
    with pytest.raises(ValueError, match="begun with another recipe"):
        train_ablation(build(AblationRecipe, longer), tmp_path, teacher=moved)
    with pytest.raises(ValueError, match="only must name variants"):
        train_ablation(one, tmp_path, teacher=moved, only=["two"])
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    with pytest.raises(ValueError, match="must have one teacher"):
        train_ablation(one, tmp_path, teacher=moved)


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on(tmp_path, teacher, monkeypatch):
    one = recipe(variants={"one_book": values()["variants"]["one_book"]}, seeds=[0])
    whole = train_ablation(one, tmp_path / "whole", teacher=teacher)
    tend = TokenizerTask.after_step

    def stopped(self, optimizers, moment):
        if moment.step == 2:  # there is a checkpoint of the first two
            raise KeyboardInterrupt
        return tend(self, optimizers, moment)

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerTask, "after_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_ablation(one, tmp_path / "cut", teacher=teacher)
    assert not (tmp_path / "cut" / "one_book-0" / "scores.json").exists()
    result = train_ablation(one, tmp_path / "cut", teacher=teacher)
    for scores in (result["runs"][0], whole["runs"][0]):
        del scores["minutes"]
    assert result["runs"] == whole["runs"]
    events = read(tmp_path / "cut" / "one_book-0")
    assert [e["step"] for e in events if e["event"] == "resume"] == [2]


def result():
    probe = {"knn": 0.5, "linear": 0.25, "majority": 0.125}
    run = {
        "variant": "one_book", "seed": 0, "steps": 10, "samples": 40, "minutes": 1.0,
        "tokens": 64, "bits": 704.0, "psnr": 20.0, "frechet_teacher": 0.5,
        "usage": 0.5, "perplexity": 100.0, "whole": probe, "semantic": probe,
    }  # fmt: skip
    other = {**run, "seed": 1, "psnr": 21.0}
    pixels = {k: v for k, v in run.items() if k != "semantic"}
    pixels["variant"] = "pixel_only"
    about = {"variants": {"one_book": {}, "pixel_only": {}}, "seeds": [0, 1]}
    about["judged"] = {"pictures": 8, "probe_train": 4, "probe_test": 2}
    return {"recipe": about, "teacher": "0", "runs": [run, other, pixels]}


def test_the_table_has_means_ranges_tokens_and_bits():
    lines = ablation_table.as_markdown(result()).splitlines()
    assert lines[0].startswith("3 runs (seeds 0, 1) of 10 steps and 40 pictures each")
    assert "right in 12.5 %" in lines[0]
    assert lines[4].startswith(
        "| `one_book` | 64 | 704 | 20.50 (20.00–21.00) | 0.500 ("
    )
    assert lines[5] == (
        "| `pixel_only` | 64 | 704 | 20.00 | 0.500 | 50.0 | 100 | 50.0 | 25.0 "
        "| none | none |"
    )
    assert all(line.count("|") == lines[2].count("|") for line in lines[3:])
    with pytest.raises(ValueError, match="needs a finished run"):
        ablation_table.as_markdown({**result(), "runs": []})


def test_the_page_says_what_the_recipe_says():
    page = (ROOT / "docs" / "ablation.md").read_text()
    text = " ".join(page.split())
    found = shipped()
    rows = {
        cells[1].strip(" `"): [cell.strip() for cell in cells[2:-1]]
        for line in page.splitlines()
        if len(cells := line.split("|")) == 9 and "`" in cells[1]
    }
    assert rows.keys() == found.variants.keys()
    for name, row in rows.items():
        config = found.run(name, 0, "T").config()
        widths = [w for w in (config.semantic_dim, config.pixel_dim) if w]
        assert row[0].startswith("one of 24" if len(widths) == 1 else "16 and 8")
        assert row[3] == str(config.num_tokens)
        assert row[4].startswith("yes" if found.variant(name).distilled else "no")
        assert row[5] == ("all" if config.pixel_gradient else "the pixel decoder alone")
    run, teacher = (
        found.run("pyramid", 0, "T").run,
        found.teacher.read(TeacherRecipe).run,
    )
    assert f"{run.steps} of {run.batch} pictures, {run.precision}" in text
    assert f"{teacher.steps} steps of {teacher.batch} pictures, trained once" in text
    model = found.run("pyramid", 0, "T").config()
    assert f"entries ({model.codebook_size}, 11 bits a token)" in text
    assert f"of {found.judged.pictures} redrawn held-out scenes" in text
    cells = f"of {found.judged.probe_test} held-out scenes, known"
    assert f"{cells} from {found.judged.probe_train} others" in text
    assert comparison.BEGIN in page and comparison.END in page


def test_a_page_takes_the_whole_table_or_none(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- table -->\nold\n<!-- end of table -->\nbelow\n")
    part = result()
    with pytest.raises(ValueError, match="missing: pixel_only-1"):
        ablation_table.write_docs(part, page)
    assert "old" in page.read_text()
    part["runs"].append({**part["runs"][2], "seed": 1})
    for _ in range(2):  # again and again
        ablation_table.write_docs(part, page)
    text = page.read_text()
    assert "old" not in text and text.count("| `one_book` |") == 1
    assert text.startswith("above\n<!-- table -->\n4 runs")
    assert text.endswith("|\n<!-- end of table -->\nbelow\n")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="must hold the lines"):
        ablation_table.write_docs(part, page)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": []}, "variants and seeds must not be empty"),
        (
            {"variants": {"a": {"about": "", "change": {}}}},
            "is variants.a.changes meant",
        ),
        (
            {"variants": {"a": {"changes": {"model": {"scales": [9]}}}}},
            "scales must not exceed grid .*in variant a",
        ),
        ({"teacher": {"changes": {"run": {"step": 1}}}}, "is teacher.run.steps meant"),
        ({"judged": {"pictures": 1}}, "judged.pictures must be at least 2, got 1"),
    ],
    ids=str,
)
def test_a_recipe_that_is_none_is_told(changes, words):
    with pytest.raises(ValueError, match=words):
        recipe(**changes)
