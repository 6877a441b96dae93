"""Recipes: read from YAML, changed, refused with the reason."""

import dataclasses

import pytest

from tokenflow.training.config import build, changed, load, of_run, recipes, write
from tokenflow.training.run import RunConfig
from tokenflow.training.tokenizer import TokenizerRecipe


@pytest.mark.parametrize("name", recipes("tokenizer"))
def test_every_recipe_that_ships_is_one(name):
    recipe = load(TokenizerRecipe, name)
    assert recipe.config().codebook_size >= 4096
    assert recipe.run.steps or recipe.run.minutes


def test_changes_win_and_are_read_as_yaml():
    changes = ["run.steps=5", "optimizer.learning_rate=1e-4", "run.minutes=null"]
    changes += ["teacher.source=", "teacher.start=no"]
    changes += ["optimizer.betas=[0.5, 0.9]", "model.codebook_size=8192", "train=all"]
    recipe = load(TokenizerRecipe, "mini", changes)
    assert recipe.teacher.source == ""
    assert recipe.run.steps == 5 and recipe.run.minutes is None
    assert recipe.optimizer.learning_rate == 1e-4
    assert recipe.optimizer.betas == (0.5, 0.9)
    assert recipe.config().codebook_size == 8192


def test_what_differs_from_the_defaults_is_told_by_name():
    values = {"run": {"steps": 5, "batch": 16}, "discriminator": {"width": 8}}
    values |= {"optimizer": {"betas": [0.5, 0.9]}, "model": {"grid": 8}}
    assert changed(build(TokenizerRecipe, values)) == {
        "run.steps": 5,
        "discriminator.width": 8,
        "optimizer.betas": (0.5, 0.9),
        "model": {"grid": 8},
    }


def test_progress_follows_the_nearer_limit():
    both = RunConfig(steps=100, minutes=1)
    assert both.progress(0, 0.0) == 0
    assert both.progress(50, 3.0) == 0.5
    assert both.progress(10, 45.0) == 0.75
    assert both.progress(100, 0.0) == both.progress(0, 61.0) == 1
    assert RunConfig(steps=0).progress(0, 0.0) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"speed": 3}, "a recipe must have only fields of .*got speed"),
        ({"run": {"step": 3}}, "run must have only .* got step; is run.steps meant?"),
        ({"run": {"steps": "many"}}, "run.steps must be int, got 'many'"),
        ({"run": {"steps": True}}, "run.steps must be int, got True"),
        ({"run": {"minutes": "long"}}, "run.minutes must be float, got 'long'"),
        ({"run": 3}, "run must be RunConfig, got 3"),
        ({"optimizer": {"betas": [0.9]}}, r"optimizer.betas must be tuple\[float, fl"),
        ({"codebook": {"start_at": [0, "x"]}}, r"codebook.start_at\[1\] must be int"),
        ({"optimizer": {"name": "sgd"}}, "optimizer.name must be one of"),
        ({"optimizer": {"learning_rate": 0}}, "learning_rate must be above 0"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(values, words):
    with pytest.raises(ValueError, match=words):
        build(TokenizerRecipe, {"run": {"steps": 1}, **values})


def test_bad_files_and_changes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="one of .*'mini'"):
        load(TokenizerRecipe, tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("run: [steps")
    with pytest.raises(ValueError, match="must be a YAML file"):
        load(TokenizerRecipe, broken)
    broken.write_text("just words")
    with pytest.raises(ValueError, match="must hold fields with names"):
        load(TokenizerRecipe, broken)
    with pytest.raises(ValueError, match="must be section.field=value, got 'steps'"):
        load(TokenizerRecipe, "mini", ["steps"])
    with pytest.raises(ValueError, match="preset has no fields"):
        load(TokenizerRecipe, "mini", ["preset.name=mini"])


def test_a_recipe_survives_its_file(tmp_path):
    recipe = load(TokenizerRecipe, "mini", ["codebook.start_at=[0, 7]"])
    write(tmp_path, recipe)
    assert of_run(TokenizerRecipe, tmp_path) == recipe
    assert of_run(TokenizerRecipe, tmp_path, ["run.seed=4"]).run.seed == 4
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        of_run(TokenizerRecipe, tmp_path / "none")


def test_a_recipe_is_a_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig(steps=1).steps = 2
