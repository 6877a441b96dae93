"""`tokenflow train`: a recipe in, a model out; mistakes are told."""

import json
import os
import signal

import pytest
import yaml
from tiny_recipe import values

from tokenflow import TokenFlowTokenizer
from tokenflow.training.tokenizer import TokenizerTask


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


def test_a_run_that_is_stopped_says_how_it_goes_on(
    run, recipe, tmp_path, emoji_font, monkeypatch
):
    plain = TokenizerTask.after_step

    def told(task, *rest):
        if not (tmp_path / "told").exists():  # in the middle of the first step
            (tmp_path / "told").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(task, *rest)

    monkeypatch.setattr(TokenizerTask, "after_step", told)
    out = tmp_path / "run"
    code, _, err = run("train", "tokenizer", recipe, "--out", out)
    assert code == 143
    assert f"go on from step 1 with --resume auto --out {out}" in err
    (out / "checkpoints").rename(tmp_path / "kept")
    words = ("train", "tokenizer", "--out", out, "--resume")
    code, _, err = run(*words, "must")
    assert code == 2 and "nothing to resume" in err
    (tmp_path / "kept").rename(out / "checkpoints")
    assert run(*words, "must").code == 0


def test_a_missing_font_is_an_environment_error(run, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENFLOW_EMOJI_FONT", str(tmp_path / "none.ttf"))
    words = (recipe, "--out", tmp_path / "run")
    code, _, err = run("train", "tokenizer", *words)
    assert code == 3 and "fonts-noto-color-emoji" in err


def test_a_teacher_is_trained_and_a_tokenizer_learns_from_it(
    run, recipe, tmp_path, emoji_font
):
    encoder = {"kind": "clip", "width": 32, "layers": 1, "heads": 2, "patch": 8}
    tiny = {
        "model": {
            "encoder": encoder | {"image_size": 32},
            "image_size": 32,
            "width": 32,
            "text": {"width": 16, "layers": 1, "heads": 2, "length": 24},
            "captions": 50,
            "vocabulary": 300,
        },
        "data": {"source": "scenes", "heldout_pictures": 8},
        "run": {"batch": 4, "steps": 2, "tensorboard": False},
    }
    path = tmp_path / "teacher.yaml"
    path.write_text(yaml.safe_dump(tiny))
    words = ("train", "teacher", path, "--out", tmp_path / "teacher", "--json")
    code, out, err = run(*words)
    assert code == 0 and "step 2: retrieval" in err
    facts = json.loads(out)
    assert facts["steps"] == 2 and 0 <= facts["retrieval"] <= 1
    code, out, _ = run(
        *("train", "tokenizer", recipe, "--out", tmp_path / "run", "--json"),
        *("--set", f"teacher.source={facts['model']}", "--set", "teacher.start=true"),
    )
    assert code == 0 and json.loads(out)["steps"] == 2


def test_pictures_without_captions_make_no_teacher(run, tmp_path, emoji_font):
    words = ("train", "teacher", "--set", "data.source=glyphs", "--out", tmp_path / "r")
    code, _, err = run(*words)
    assert code == 2 and "glyphs has none" in err


def test_a_folder_that_cannot_be_is_told_before_any_work(run, recipe, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        code, _, err = run("train", "tokenizer", recipe, "--out", out)
        assert code == 3 and f"the run's folder {out} cannot be made" in err


def test_a_run_that_cannot_begin_leaves_no_folder(run, recipe, tmp_path):
    words = ("train", "tokenizer", recipe, "--set", "run.tensorboard=true", "--out")
    for name in ("empty", "missing"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        data = ("--set", f"data.source={tmp_path / name}")
        code, _, err = run(*words, tmp_path / "run", *data)
        assert code == 3 and str(tmp_path / name) in err
        assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    assert run(*words, tmp_path / "run", *data).code == 3
    assert (tmp_path / "run" / "mine.txt").exists()


@pytest.mark.parametrize(
    "task",
    ["tokenizer", "teacher", "generation", "detector", "understanding", "unified"],
)
def test_a_run_without_a_folder_goes_where_the_help_says(
    run, tmp_path, monkeypatch, task
):
    def train(recipe, folder, *, resume, device):
        return {"recipe": recipe.task, "at": str(folder), "resume": resume}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"tokenflow.training.{task}.train_{task}", train)
    name = "scenes" if task == "detector" else "mini"
    folder = f"{task}-" * (task != "tokenizer")
    told = " ".join(run("train", task, "--help").out.split())
    assert f"runs/{folder}RECIPE if not given" in told
    code, out, _ = run("train", task, name, "--json")
    model = f"runs/{folder}{name}/model"
    found = {"recipe": task, "at": f"runs/{folder}{name}", "resume": False}
    assert code == 0 and json.loads(out) == {"model": model, **found}
