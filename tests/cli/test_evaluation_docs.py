"""docs/evaluation.md and the command say the same."""

import json
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text()


def test_every_number_is_defined(run, model, photos, page):
    words = ("--model", model, "--data", photos, "--json")
    result = json.loads(run("evaluate", "reconstruction", *words).out)
    defined = set(re.findall(r"`([\w.]+)`", page))
    about = {"model_name", "data", "protocol"}  # what was asked for
    told = {"pictures", "size", "tokens", "codebook_size"}  # said in words: N, R, L, K
    for key, value in result.items():
        if key not in about | told | {"model"}:
            assert key in defined, key
        if key == "model":
            assert {f"model.{name}" for name in value} <= defined
    assert {"model.lpips", "rfid", "rfid_published_script", "frechet_teacher"} < defined


def test_every_option_of_the_page_exists_and_the_other_way_round(run, page):
    option = re.compile(r"--[a-z][a-z-]+")
    known = set()
    for command in ("reconstruction", "generation", "understanding"):
        known |= set(option.findall(run("evaluate", command, "-h").out))
    told = set(option.findall(page))
    assert told <= known
    everywhere = {"--help", "--device", "--batch-size"}  # no number depends on them
    assert known - told <= everywhere


def test_what_is_told_of_an_answer_s_scores_is_defined(page):
    from tokenflow.evaluation.questions import scores

    row = scores([("count", "2", "2", "3")])
    defined = set(re.findall(r"`([\w.]+)`", page))
    assert row.keys() - defined == {"right", "majority_answer"}  # they name themselves
