"""`tokenflow evaluate generation`: prompts drawn, a judge that is checked itself."""

import json

import pytest
import torch
from generation_cases import small, small_tokenizer

from tokenflow.data.scenes import COLOURS, OBJECTS
from tokenflow.evaluation import geneval
from tokenflow.evaluation.detector import Detector
from tokenflow.training.words import learn


@pytest.fixture(scope="module")
def drawer(tmp_path_factory):
    """Folder of a generator with random weights, of pictures of 32 pixels."""
    torch.manual_seed(0)
    model = small((1, 2, 8), image_start=300, text_length=8)
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
    found = [(row["guidance"], row["passes"]) for row in result["scores"]]
    assert found == [(0, 1), (2, 1)] and result["pictures"] == 6
    scores = result["scores"][0]["scores"]
    assert set(scores) == set(result["ceiling"]) == set(result["detector"]["true"])
    text = geneval.as_text(result)
    assert "guidance 2, 1 pass " in text and "ceiling" in text
    assert "detector, true pictures" in text


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
