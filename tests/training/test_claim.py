"""The claim: one language model, four inputs, and scores that compare them."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_claim import home, recipe, values

from tokenflow import TokenFlowForUnderstanding
from tokenflow.data.dialogues import SceneQuestions
from tokenflow.evaluation.questions import SEED, evaluate_scenes, interval
from tokenflow.training import claim, claim_table, comparison, dialogues
from tokenflow.training.ablation import AblationRecipe
from tokenflow.training.claim import ClaimRecipe, train_claim
from tokenflow.training.config import build, load
from tokenflow.training.teacher import TeacherRecipe
from tokenflow.training.understanding import UnderstandingTask, build_model
from tokenflow.training.world import World

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quiet(emoji_font, threads, monkeypatch):
    threads(1)
    monkeypatch.setattr(dialogues, "LEARNED_FROM", 40)  # conversations, for words


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return home(tmp_path_factory.mktemp("ablation"), seeds=(0, 1))


def test_the_variants_that_ship_differ_in_what_they_read():
    found = load(ClaimRecipe, "scenes")
    runs = {name: found.run(name, 1) for name in found.variants}
    assert {n: r.model.inputs for n, r in runs.items()} == {
        "continuous": "teacher",
        "tokenflow": "last",
        "pixel_only": "last",
        "semantic_only": "last",
        "blind": "none",
    }
    base = "runs/ablation-scenes/"
    assert runs["continuous"].model.teacher == f"{base}teacher/model"
    for name in ("pixel_only", "semantic_only"):
        assert runs[name].model.tokenizer == f"{base}{name}-1/model"
    plain = {"inputs": "last", "tokenizer": "mini", "teacher": ""}
    shared = [
        dataclasses.replace(run, model=dataclasses.replace(run.model, **plain))
        for run in runs.values()
    ]
    assert all(run == shared[0] for run in shared) and shared[0].run.seed == 1


def test_all_begin_with_one_language_model_and_hear_the_same(inputs):
    found = recipe(inputs)
    tasks = {
        name: UnderstandingTask(found.run(name, 0), World()) for name in found.variants
    }
    first = tasks["continuous"].model.language_model.state_dict()
    batches = {name: next(task.batches(0, World())) for name, task in tasks.items()}
    asked = batches["continuous"]
    widths = set()
    for name, task in tasks.items():
        for key, value in task.model.language_model.state_dict().items():
            assert torch.equal(value, first[key]), (name, key)
        widths.add(task.model.config.feature_width)
        if name != "blind":
            assert torch.equal(batches[name]["input_ids"], asked["input_ids"])
            pairs = zip(batches[name]["images"], asked["images"], strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
    assert widths == {20, 40, 8, 32}  # teacher, both halves, pixels, meaning
    other = build_model(found.run("tokenflow", 1)).language_model.state_dict()
    assert any(not torch.equal(other[key], first[key]) for key in first)


@pytest.mark.slow
def test_runs_are_made_once_and_judged_as_they_are_read_back(inputs, tmp_path):
    found, out, said = recipe(inputs), tmp_path / "out", []
    result = train_claim(found, out, only=["blind"], say=said.append)
    assert [run["variant"] for run in result["runs"]] == ["blind"]
    assert result["variants"]["blind"]["all"]["ratio"] is None
    result = train_claim(found, out, say=said.append)
    names = [run["variant"] for run in result["runs"]]
    assert names == list(found.variants) and len(said) == 5  # blind was there
    sizes = {
        run["variant"]: (run["positions"], run["numbers"]) for run in result["runs"]
    }
    assert sizes == {
        "continuous": (16, 20),
        "tokenflow": (16, 40),
        "pixel_only": (16, 8),
        "semantic_only": (16, 32),
        "blind": (0, 0),
    }
    assert json.loads((out / "claim.json").read_text()) == json.loads(
        json.dumps(result)
    )
    read = TokenFlowForUnderstanding.from_pretrained(out / "continuous-0" / "model")
    again = evaluate_scenes(read, 12, batch_size=12)
    row = result["variants"]["continuous"]
    assert row["all"]["exact"] == again["all"]["exact"]
    assert row["all"]["majority"] == again["all"]["majority"]
    assert row.keys() == {*again["kinds"], "all"}
    for kind, judged in again["kinds"].items():
        assert row[kind]["exact"] == judged["exact"]
        assert row[kind]["questions"] == judged["questions"]

    moved = tmp_path / "moved"
    shutil.copytree(inputs, moved)
    kept = train_claim(recipe(moved), out, say=said.append)
    assert kept["runs"] == result["runs"] and len(said) == 5
    with pytest.raises(ValueError, match="begun with another recipe"):
        train_claim(recipe(moved, understanding={"recipe": "mini"}), out)
    with pytest.raises(ValueError, match="judged = .*remove it to judge again"):
        train_claim(recipe(moved, judged={"questions": 13}), out)
    (moved / "pixel_only-0" / "model" / "note").write_text("another one")
    with pytest.raises(ValueError, match="must have one tokenizer or teacher"):
        train_claim(recipe(moved), out)


def test_who_is_blind_is_asked_without_pictures(monkeypatch):
    source = SceneQuestions(40, "heldout", size=32, seed=SEED)
    model = SimpleNamespace(config=SimpleNamespace(image_size=32))
    asked = []

    def ask(model, questions, pictures=None):
        """Every third answer is wrong, and every answer without a picture."""
        numbers = range(len(asked), len(asked) + len(questions))
        asked.extend(questions)
        for number, picture in zip(numbers, pictures or (), strict=False):
            assert torch.equal(picture, source[number]["images"][0])
        right = [pictures is not None and number % 3 for number in numbers]
        pairs = zip(right, numbers, strict=True)
        return [source[n]["answer"].upper() if good else "?" for good, n in pairs]

    monkeypatch.setattr(claim, "ask", ask)
    found = claim.judge(model, claim.AskedConfig(questions=40))
    assert asked == [source[n]["question"] for n in range(40)]
    expected = {}
    for number in range(40):
        kind = source[number]["kind"]
        expected[kind] = expected.get(kind, "") + str(int(number % 3 > 0))
    assert {kind: row["right"] for kind, row in found.items()} == expected
    asked.clear()
    unseen = claim.judge(model, claim.AskedConfig(questions=40), blind=True)
    assert {k: r["right"] for k, r in unseen.items()} == {
        kind: "0" * len(marks) for kind, marks in expected.items()
    }
    assert unseen["count"]["majority"] == found["count"]["majority"] > 0


def run(variant, seed, colour, count):
    """A run that answers as the two strings of marks say."""
    return {
        "variant": variant, "seed": seed, "steps": 10, "samples": 40, "minutes": 1.0,
        "positions": 0 if variant == "blind" else 16, "numbers": 24,
        "kinds": {
            "colour": {"right": colour, "majority": 0.5},
            "count": {"right": count, "majority": 0.25},
        },
    }  # fmt: skip


def result(*runs):
    about = {"variants": dict.fromkeys(("continuous", "tokenflow", "blind"))}
    about |= {"measure": "continuous", "seeds": [0, 1]}
    about["judged"] = {"questions": 6, "split": "heldout"}
    return {"recipe": about, "runs": list(runs)}


FULL = (
    run("continuous", 0, "1111", "10"),
    run("continuous", 1, "1110", "00"),
    run("tokenflow", 0, "1100", "10"),
    run("tokenflow", 1, "1110", "00"),
    run("blind", 0, "1000", "00"),
)


def test_shares_ratios_and_intervals_are_those_worked_out_by_hand():
    found = claim_table.compared(result(*FULL))
    tokens = found["tokenflow"]
    assert tokens["colour"]["exact"] == (2 + 3) / 8
    assert tokens["colour"]["seeds"] == [0.5, 0.75]
    assert tokens["all"]["exact"] == pytest.approx(6 / 12)
    assert tokens["all"]["seeds"] == [0.5, 0.5] and tokens["all"]["questions"] == 6
    assert tokens["all"]["interval"] == list(interval(3.0, 6))
    assert found["continuous"]["all"]["ratio"] == 1
    assert found["continuous"]["all"]["ratio_interval"] == [1, 1]
    assert found["blind"]["all"]["majority"] == pytest.approx((4 * 0.5 + 2 * 0.25) / 6)
    # a question's scores: tokens 1 1 .5 0, continuous 1 1 1 .5
    ratio = tokens["colour"]["ratio"]
    assert ratio == pytest.approx(2.5 / 3.5)
    spread = sum((x - ratio * y) ** 2 for x, y in ((1, 1), (1, 1), (0.5, 1), (0, 0.5)))
    reach = 1.959964 * (spread / (4 * 3)) ** 0.5 / (3.5 / 4)
    low, high = tokens["colour"]["ratio_interval"]
    assert (low, high) == (
        pytest.approx(ratio - reach),
        pytest.approx(ratio + reach),
    )
    nothing = claim_table.compared(result(run("continuous", 0, "00", "00"), FULL[4]))
    assert nothing["continuous"]["all"]["ratio"] is None


def test_the_table_has_every_input_and_the_majority():
    lines = claim_table.as_markdown(result(*FULL)).splitlines()
    assert lines[0].startswith("5 runs (seeds 0, 1) of 10 steps and 40 conversations")
    assert lines[2] == (
        "| input | positions × numbers | all | all, of `continuous` | colour | count |"
    )
    assert lines[5].startswith("| `tokenflow` | 16 × 24 | 50.0 (")
    assert "| 75.0 (" in lines[5]  # 6 of the 8 that the measure has
    assert lines[6].startswith("| `blind` | none | 16.7 (")
    assert lines[7] == "| most frequent | none | 41.7 |  | 50.0 | 25.0 |"
    assert all(line.count("|") == lines[2].count("|") for line in lines[3:])
    with pytest.raises(ValueError, match="needs a finished run"):
        claim_table.as_markdown(result())


def test_the_page_says_what_the_recipe_says():
    page = (ROOT / "docs" / "claim.md").read_text()
    found = load(ClaimRecipe, "scenes")
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert rows[: len(found.variants)] == list(found.variants)
    assert f"{found.judged.questions} questions about held-out scenes" in page
    assert found.judged.split == "heldout"
    ablation = load(AblationRecipe, "scenes")
    tokens, teacher = ablation.run("teacher_start", 0, "T"), ablation.teacher
    shape = tokens.config()
    assert f"{shape.grid} × {shape.grid} patches" in page
    assert f"{shape.grid**2} positions" in page
    width = teacher.read(TeacherRecipe).model.width
    read = f"{width} numbers of the\n  teacher, {shape.semantic_dim + shape.pixel_dim}"
    assert read in page
    assert {
        f"{name}-0" for name in ("teacher_start", "pixel_only", "semantic_only")
    } == {
        run.model.tokenizer.split("/")[-2]
        for run in (found.run(name, 0) for name in found.variants)
    }
    assert {"teacher_start", "pixel_only", "semantic_only"} <= ablation.variants.keys()
    assert comparison.BEGIN in page and comparison.END in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": []}, "variants and seeds must not be empty"),
        ({"measure": "sight"}, "measure must be one of .* got 'sight'"),
        ({"variants": {"continuous": {"input": "last"}}}, "continuous.inputs meant"),
        (
            {"variants": {"continuous": {"inputs": "teacher"}}},
            "model.teacher must be given .*in variant continuous",
        ),
        (
            {"understanding": {"changes": {"model": {"init": "x"}}}},
            "understanding.model.init must be empty",
        ),
        (
            {"understanding": {"changes": {"run": {"step": 1}}}},
            "is understanding.run.steps meant",
        ),
        ({"judged": {"questions": 0}}, "judged.questions must be at least 1, got 0"),
        ({"judged": {"split": "train"}}, "judged.split must be one of"),
    ],
    ids=str,
)
def test_a_recipe_that_is_none_is_told(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        build(ClaimRecipe, values(tmp_path, **changes))


def test_what_is_not_there_is_told_before_anything_is_trained(tmp_path):
    with pytest.raises(FileNotFoundError, match="continuous needs .*teacher/model,"):
        train_claim(recipe(tmp_path / "gone"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*/recipe.yaml"))
