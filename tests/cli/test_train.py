"""`tokenflow train tokenizer`: a recipe in, a model out; mistakes are told."""

import json

import pytest

from tokenflow import TokenFlowTokenizer

RECIPE = """
steps = 2
batch = 2
teacher_minutes = 0.0
teacher_batch = 2
evaluate_pictures = 2

[model]
image_size = 32
grid = 4
scales = [1, 4]
semantic_encoder = { width = 32, layers = 1, heads = 2, image_size = 32 }
semantic_decoder = { width = 32, grid = 4, heads = 2 }
semantic_target = 32
pixel_encoder = { multipliers = [1, 1, 1, 1] }
pixel_decoder = { multipliers = [1, 1, 1, 1] }
codebook_size = 32
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def test_a_recipe_becomes_a_model_and_can_go_on(run, recipe, tmp_path, emoji_font):
    words = ("train", "tokenizer", "--out", tmp_path / "run", "--json")
    code, out, err = run(*words, "--recipe", recipe)
    assert code == 0 and "held-out" in err
    result = json.loads(out)
    assert result["steps"] == 2 and result["pictures"] == 4
    model = TokenFlowTokenizer.from_pretrained(result["model"])
    assert model.config.codebook_size == 32
    code, _, err = run(*words, "--recipe", recipe)
    assert code == 2 and "resume it" in err
    code, out, _ = run(*words, "--resume", "--steps", 3)
    assert code == 0 and json.loads(out)["steps"] == 3


def test_mistakes_in_a_recipe_are_usage_errors(run, recipe, tmp_path):
    code, _, err = run("train", "tokenizer", "--recipe", tmp_path / "none.toml")
    assert code == 2 and "recipe must be one of" in err
    recipe.write_text("speed = 3")
    code, _, err = run("train", "tokenizer", "--recipe", recipe)
    assert code == 2 and "['speed']" in err
    recipe.write_text("steps = 3\npreset = 'maxi'")
    code, _, err = run("train", "tokenizer", "--recipe", recipe)
    assert code == 2 and "got 'maxi'" in err
    words = ("train", "tokenizer", "--resume", "--out", tmp_path / "none")
    code, _, err = run(*words)
    assert code == 2 and "nothing to resume" in err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_a_missing_font_is_an_environment_error(run, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENFLOW_EMOJI_FONT", str(tmp_path / "none.ttf"))
    words = ("--recipe", recipe, "--out", tmp_path / "run")
    code, _, err = run("train", "tokenizer", *words)
    assert code == 3 and "fonts-noto-color-emoji" in err
