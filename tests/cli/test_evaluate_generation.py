"""`tokenflow evaluate generation`: prompts drawn, a judge that is checked itself."""

import json
from pathlib import Path

import pytest
import torch
from generation_cases import small, small_tokenizer

from tokenflow import TokenFlowGenerationConfig
from tokenflow.data.scenes import COLOURS, OBJECTS
from tokenflow.evaluation import sampling_table
from tokenflow.evaluation.detector import Detector
from tokenflow.evaluation.sampling_table import as_markdown
from tokenflow.training.words import learn


@pytest.fixture(scope="module")
def drawer(tmp_path_factory):
    """Folder of a generator with random weights, of pictures of 32 pixels."""
    torch.manual_seed(0)
    model = small((1, 2, 8), image_start=300, text_length=64)
    model.attach(small_tokenizer((1, 2, 8)))
    model.text_tokenizer = learn(["a cat", "two dogs"], 270)
    folder = tmp_path_factory.mktemp("models") / "drawer"
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "judge"
    torch.manual_seed(0)
    Detector(tuple(OBJECTS), tuple(COLOURS), 16, 1).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def words(drawer, judge):
    words = ("evaluate", "generation", "--model", drawer, "--detector", judge)
    return (*words, "--prompts", "1", "--images", "1")


def test_a_poor_judge_does_not_judge(run, words, emoji_font):
    code, out, err = run(*words)
    assert code == 1 and out == ""
    assert "right less often than 97%" in err and "--force" in err


def test_settings_are_the_rows_of_a_table(run, words, emoji_font):
    words += ("--force", "--guidance-scale", "0", "--guidance-scale", "2")
    code, out, _ = run(*words, "--refinement", "1", "--json")
    assert code == 0
    result = json.loads(out)
    found = [(row["guidance"], row["refinement"]) for row in result["scores"]]
    assert found == [(0, [[2, 0.6]]), (2, [[2, 0.6]])]  # of 64 entries, not 32768
    assert result["pictures"] == 6
    scores = result["scores"][0]["scores"]
    assert set(scores) == set(result["ceiling"]) == set(result["detector"]["true"])
    text = as_markdown(result)
    assert "| guidance 2, k/p 2/0.6 |" in text and "ceiling" in text
    assert "detector on true pictures" in text and "paper" not in text
    columns = "|  | single object | two object | counting | colors | position |"
    assert f"{columns} color attr | mean |" in text  # as GenEval has them


def test_the_papers_table_is_one_command_and_goes_on(run, words, emoji_font):
    words += ("--force", "--table", "sampling", "-o", "table.json")
    words += ("--guidance-scale", "2")
    code, out, _ = run(*words)
    assert code == 0
    rows = [line for line in out.splitlines() if line.startswith("| guidance 2")]
    assert len(rows) == 5 and "| guidance 2, k/p 3/0.8, 1/0 |" in out
    assert rows[0].endswith("| 50.2 |")  # the paper's
    held = json.loads(Path("table.json").read_text())
    held["scores"][1]["scores"]["mean"] = 0.123  # would be drawn as something else
    del held["scores"][2:]
    Path("table.json").write_text(json.dumps(held))
    code, again, _ = run(*words)
    assert code == 0 and "| 12.3 | 54.1 |" in again
    assert [r for r in rows if "3/0.8, 1/0 |" not in r] == [
        line
        for line in again.splitlines()
        if line.startswith("| guidance 2") and "3/0.8, 1/0 |" not in line
    ]
    code, _, err = run(*words, "--seed", "1")
    assert code == 1 and "must be of seed 1 to be gone on with, it is of 0" in err


def test_rows_are_the_papers_for_a_book_of_this_size():
    rows = sampling_table.sampling_rows(4096, 7.5)
    assert [row.refinement for row in rows] == [
        ((150, 0.8),),
        ((150, 0.8), (1, 0.0)),
        ((150, 0.8), (2, 0.8)),
        ((150, 0.8), (13, 0.8)),
        ((150, 0.8), (13, 0.8), (1, 0.0)),
    ]
    mini = TokenFlowGenerationConfig.preset("mini").sampling
    assert mini["refinement"] == [[*look] for look in rows[-1].refinement]
    whole = sampling_table.sampling_rows(32768, 7.5)
    assert whole[-1].refinement == ((1200, 0.8), (100, 0.8), (1, 0.0))
    sweep = sampling_table.guidance_rows(((150, 0.8),))
    assert [row.guidance for row in sweep] == [0, 1, 2, 3, 5, 7.5, 10]


def test_what_is_no_table_is_not_overwritten(tmp_path):
    file = tmp_path / "table.json"
    file.write_text("[1]")
    rows = sampling_table.guidance_rows(((1, 0.0),))
    with pytest.raises(ValueError, match="must be a table of scores"):
        sampling_table.fill({}, rows, lambda row: {}, file)
    assert file.read_text() == "[1]"


def test_pictures_can_be_judged_elsewhere(run, words, emoji_font, tmp_path):
    out = tmp_path / "geneval"
    words += ("--force", "--refinement", "1", "--output", out)
    assert run(*words).code == 0
    assert len([*out.glob("*/samples/0000.png")]) == 6
    held = json.loads((out / "00000" / "metadata.jsonl").read_text())
    assert held["tag"] == "single_object" and held["prompt"]
    code, _, err = run(*words)
    assert code == 2 and "is not empty" in err


def test_mistakes_are_usage_errors(run, words, tmp_path):
    code, _, err = run(*words[:4], "--detector", tmp_path)
    assert code == 2 and "there is no config.json" in err
    sweep = ("--refinement", "1", "--refinement", "2", "--output", tmp_path / "x")
    code, _, err = run(*words, *sweep)
    assert code == 2 and "one setting only" in err
    code, _, err = run(*words, "--table", "sampling", "--refinement", "1")
    assert code == 2 and "has its own looks" in err
    code, _, err = run(*words, "--table", "guidance", "--guidance-scale", "1")
    assert code == 2 and "has its own guidance" in err
