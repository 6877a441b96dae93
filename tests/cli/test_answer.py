"""`tokenflow answer`: a picture and a question in, words out."""

import json

import pytest
import tiny_understanding as tiny
import torch
from PIL import Image

from tokenflow.cli._options import load_model


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    made = tiny.model()
    folder = tmp_path_factory.mktemp("models") / "speaker"
    made.save_pretrained(folder)
    return made, str(folder)


@pytest.fixture(autouse=True)
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.picture(1).save("one.png")
    tiny.picture(2, (30, 60)).save("two.png")


def test_the_words_are_the_model_s(run, speaker):
    model, folder = speaker
    told = model.answer(tiny.picture(1), "What is it?", max_new_tokens=12)
    words = ("answer", "one.png", "What is it?", "-m", folder, "--max-tokens", "12")
    code, out, err = run(*words)
    assert (code, err) == (0, "") and out == told + "\n" and told


def test_float16_runs_in_float32_on_a_cpu(speaker, tmp_path):
    speaker[0].save_pretrained(tmp_path / "half", dtype=torch.float16)
    half = load_model(str(tmp_path / "half"), "cpu", "TokenFlowForUnderstanding")
    assert {p.dtype for p in half.parameters()} == {torch.float32}


def test_json_says_what_was_asked(run, speaker):
    model, folder = speaker
    asked = "Is <image> like <image>?"
    words = ("one.png", "two.png", asked, "-m", folder, "--max-tokens", "8", "--json")
    code, out, err = run("answer", *words)
    seen = [tiny.picture(1), tiny.picture(2, (30, 60))]
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "model": folder,
        "pictures": ["one.png", "two.png"],
        "question": asked,
        "answer": model.answer(seen, asked, max_new_tokens=8),
    }


def test_draws_follow_their_seed(run, speaker):
    words = ("answer", "one.png", "What?", "-m", speaker[1], "--max-tokens", "16")
    words += ("--temperature", "2", "--seed")
    first, second, other = (run(*words, seed).out for seed in (1, 1, 2))
    assert first == second != other


def test_a_picture_that_cannot_be_read_is_named(run, speaker):
    with open("broken.png", "w") as file:
        file.write("no picture")
    code, out, err = run("answer", "one.png", "broken.png", "Q", "-m", speaker[1])
    assert (code, out) == (1, "") and err.startswith("failed: broken.png: ")
    code, _, err = run("answer", "gone.png", "Q", "-m", speaker[1])
    assert code == 1 and "gone.png: No such file" in err


def test_marks_that_do_not_fit_are_usage(run, speaker):
    asked = "Is <image> like <image>?"
    code, out, err = run("answer", "one.png", asked, "-m", speaker[1])
    assert (code, out) == (2, "") and "once for each of 1 pictures" in err


@pytest.mark.parametrize(
    ("question", "complaint"),
    [
        ("", "at least 1 word"),
        ("why " * 200, "at most 512 positions"),
    ],
)
def test_what_cannot_be_asked_is_usage(run, speaker, question, complaint):
    code, out, err = run("answer", "one.png", question, "-m", speaker[1])
    assert (code, out) == (2, "")
    assert complaint in " ".join(err.replace("│", " ").split())


def test_an_oversize_picture_is_named_with_its_size(run, speaker):
    Image.new("1", (10_001, 10_000)).save("wide.png")
    code, out, err = run("answer", "wide.png", "Q", "-m", speaker[1])
    assert (code, out) == (1, "") and "wide.png" in err
    assert "at most 100,000,000 pixels, got 10001×10000 = 100,010,000" in err


@pytest.mark.slow
def test_a_user_s_own_process_answers(shell, speaker, tmp_path):
    model, folder = speaker
    words = ("answer", "one.png", "What is it?", "-m", folder, "--max-tokens", "6")
    code, out, err = shell(*words, "--device", "cpu")
    told = model.answer(tiny.picture(1), "What is it?", max_new_tokens=6)
    assert (code, out, err) == (0, told + "\n", "")


def test_no_such_model_is_the_environment(run, monkeypatch, tmp_path):
    from tokenflow import checkpoint

    monkeypatch.setattr(checkpoint.files, "SHIPPED", tmp_path)
    code, out, err = run("answer", "one.png", "What?")
    assert (code, out) == (3, "")
    assert "'mini'" in err and "none of those shipped for understanding" in err
