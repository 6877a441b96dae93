"""A unified model stands where one that paints or one that answers is asked for."""

import json

import pytest
import tiny_unified as tiny
import torch

SCALES = (1, 2, 8)  # pictures of 32 pixels, as large as scenes must be


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    made = tiny.model(SCALES, text_length=80)
    folder = tmp_path_factory.mktemp("models") / "both"
    made.save_pretrained(folder)
    return made, str(folder)


def test_it_answers(run, both, tmp_path):
    model, folder = both
    tiny.picture(1).save(tmp_path / "one.png")
    words = ("answer", tmp_path / "one.png", "What?", "-m", folder, "--max-tokens")
    code, out, err = run(*words, "9", "--json")
    assert (code, err) == (0, "")
    told = model.answer(tiny.picture(1), "What?", max_new_tokens=9)
    assert json.loads(out)["answer"] == told and told
    drawn = [run(*words, "9", "--temperature", "5", "--seed", s).out for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    code, _, err = run("answer", tmp_path / "one.png", " ", "-m", folder)
    assert code == 2 and "must have at least 1 word" in err


def test_it_paints(run, both, tmp_path):
    from PIL import Image

    model, folder = both
    out = tmp_path / "made.png"
    code, said, _ = run(
        "generate", "what is red?", "-m", folder, "-o", out, "--seed", "3"
    )
    assert code == 0 and "seed 3" in said
    seeded = torch.Generator().manual_seed(3)
    (picture,) = model.generate("what is red?", generator=seeded)
    assert Image.open(out).tobytes() == picture.tobytes()


def test_its_answers_are_judged(run, both, emoji_font):
    words = ("evaluate", "understanding", "-m", both[1], "--count", "5", "--json")
    code, out, _ = run(*words, "--batch-size", "2")
    assert code == 0
    found = json.loads(out)["all"]
    assert found["questions"] == 5 and 0 <= found["blind"] <= 1


def test_its_pictures_are_judged(run, both, emoji_font, tmp_path):
    from tokenflow.data.scenes import COLOURS, OBJECTS
    from tokenflow.evaluation.detector import Detector

    Detector(tuple(OBJECTS), tuple(COLOURS), 16, 1).save_pretrained(tmp_path / "judge")
    words = ("evaluate", "generation", "-m", both[1], "--detector", tmp_path / "judge")
    words += ("--force", "--prompts", "1", "--images", "1", "--refinement", "1")
    code, out, _ = run(*words, "--json")
    assert code == 0 and json.loads(out)["pictures"] == 6


def test_a_shipped_one_has_a_name(run, both, monkeypatch, tmp_path):
    from tokenflow import checkpoint

    both[0].save_pretrained(tmp_path / "small-unified")
    monkeypatch.setattr(checkpoint.files, "SHIPPED", tmp_path)
    tiny.picture(1).save(tmp_path / "one.png")
    words = ("answer", tmp_path / "one.png", "What?", "--max-tokens", "3", "-m")
    assert run(*words, "small-unified").code == 0
    code, _, err = run(*words, "small")
    assert code == 3 and "none of those shipped for understanding" in err
