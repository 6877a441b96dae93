"""Recipes: read from TOML, changed, refused with the reason."""

import dataclasses

import pytest

from tokenflow.config import TokenFlowConfig
from tokenflow.training.config import TrainConfig, load, recipes


def test_the_shipped_recipe_is_the_shipped_model():
    recipe = load("mini")
    assert "mini" in recipes()
    config = TokenFlowConfig.preset(recipe.preset, **recipe.model)
    assert config.image_size == 64 and config.codebook_size == 4096
    assert recipe.minutes and recipe.batch % recipe.threads == 0


def test_changes_that_are_given_win():
    recipe = load("mini", minutes=None, steps=5)
    assert recipe.steps == 5 and recipe.minutes == load("mini").minutes


def test_progress_follows_the_nearer_limit():
    both = TrainConfig(steps=100, minutes=1)
    assert both.progress(0, 0.0) == 0
    assert both.progress(50, 3.0) == 0.5
    assert both.progress(10, 45.0) == 0.75
    assert both.progress(100, 0.0) == both.progress(0, 61.0) == 1
    assert TrainConfig(steps=0).progress(0, 0.0) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "minutes or steps"),
        ({"steps": 1, "batch": 0}, "batch must be at least 1, got 0"),
        ({"steps": 1, "batch": 3, "threads": 2}, "multiple of threads = 2, got 3"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"steps": 1, "ema": 1.0}, "ema must be in"),
        ({"steps": 1, "learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
    ids=str,
)
def test_values_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="mini"):
        load(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = = 3")
    with pytest.raises(ValueError, match="must be a TOML file"):
        load(broken)
    broken.write_text("steps = 3\ncolour = 'red'")
    with pytest.raises(ValueError, match="known fields only, got .'colour'"):
        load(broken)


def test_a_recipe_is_a_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig(steps=1).steps = 2
