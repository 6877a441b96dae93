"""`tokenflow train tokenizer`: a recipe in, a model out; mistakes are told."""

import json

import pytest
import yaml
from tiny_recipe import values

from tokenflow import TokenFlowTokenizer


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values(run={"steps": 2})))
    return path


def test_a_recipe_becomes_a_model_and_can_go_on(run, recipe, tmp_path, emoji_font):
    words = ("train", "tokenizer", recipe, "--out", tmp_path / "run", "--json")
    code, out, err = run(*words)
    assert code == 0 and "step 2: psnr" in err
    result = json.loads(out)
    assert result["steps"] == 2 and result["samples"] == 8
    model = TokenFlowTokenizer.from_pretrained(result["model"])
    assert model.config.codebook_size == 128
    code, _, err = run(*words)
    assert code == 2 and "resume it" in err
    code, out, _ = run(*words, "--resume", "auto", "--set", "run.steps=3")
    assert code == 0 and json.loads(out)["steps"] == 3


def test_mistakes_in_a_recipe_are_usage_errors(run, recipe, tmp_path):
    def complaint(*words):
        code, _, err = run("train", "tokenizer", *words)
        assert code == 2
        return err

    assert "recipe must be one of" in complaint(tmp_path / "none.yaml")
    assert "is run.steps meant?" in complaint(recipe, "--set", "run.step=3")
    assert "got 'maxi'" in complaint(recipe, "--set", "preset=maxi")
    assert "--resume must be no, auto or must" in complaint(recipe, "--resume", "x")
    words = "--resume", "must", "--out", tmp_path / "none"
    assert "nothing to resume" in complaint(recipe, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_missing_font_is_an_environment_error(run, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENFLOW_EMOJI_FONT", str(tmp_path / "none.ttf"))
    words = (recipe, "--out", tmp_path / "run")
    code, _, err = run("train", "tokenizer", *words)
    assert code == 3 and "fonts-noto-color-emoji" in err
