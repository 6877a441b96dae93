"""`tokenflow generate`: words in, one PNG out, the same for the same seed."""

import io
import json
import os
import sys

import numpy as np
import pytest
import torch
from generation_cases import small
from PIL import Image

from tokenflow import TokenFlowForGeneration, checkpoint
from tokenflow.cli.generate import GAP, sheet
from tokenflow.training.words import learn

WORDS = ["[PAD]", "<s>", "</s>", "<unk>", "<img>", "</img>", "two", "cats", "a", "dog"]


@pytest.fixture(scope="session")
def drawer(tmp_path_factory):
    """Folder of a small generator with random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {word: number for number, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "[PAD]"}
    marks = {f"{name}_token": mark for name, mark in marks.items()}
    model = small()
    model.text_tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **marks)
    folder = tmp_path_factory.mktemp("models") / "drawer"
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pixels(path):
    with Image.open(path) as picture:
        return np.array(picture)


def test_a_picture_is_the_models(run, drawer):
    words = ("generate", "two cats", "-o", "cats.png", "-m", drawer, "--seed", "3")
    code, out, err = run(*words)
    assert (code, err) == (0, "") and out == "cats.png  seed 3\n"
    model = TokenFlowForGeneration.from_pretrained(drawer)
    draw = torch.Generator().manual_seed(3)
    assert np.array_equal(
        pixels("cats.png"), np.array(model.generate("two cats", generator=draw)[0])
    )


def test_settings_reach_the_model(run, drawer):
    words = ("generate", "a dog", "-m", drawer, "--seed", "3", "--guidance", "1.5")
    words += ("--passes", "1", "--negative", "two cats", "--grid", "3", "--json")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["seed"] == 3 and told["pictures"] == 3 and told["tokens"] == 14
    model = TokenFlowForGeneration.from_pretrained(drawer)
    pictures = model.generate(
        "a dog",
        guidance_scale=1.5,
        refinement=[(600, 0.6)],
        negative_prompt="two cats",
        generator=torch.Generator().manual_seed(3),
        num_images=3,
    )
    wanted = np.array(sheet(pictures, 2))
    assert np.array_equal(pixels("generated.png"), wanted)
    assert wanted.shape == (24 + GAP, 24 + GAP, 3)


def test_each_prompt_has_a_row(run, drawer):
    words = ("generate", "a dog", "two cats", "-m", drawer, "--seed", "3")
    code, out, _ = run(*words, "--grid", "4", "--json")
    told = json.loads(out)
    assert code == 0 and told["prompts"] == ["a dog", "two cats"]
    assert told["pictures"] == 8
    model = TokenFlowForGeneration.from_pretrained(drawer)
    pictures = model.generate(
        ["a dog", "two cats"],
        generator=torch.Generator().manual_seed(3),
        num_images=4,
    )
    assert np.array_equal(pixels("generated.png"), np.array(sheet(pictures, 4)))
    assert run(*words, "--show-scales", "-o", "all.png").code == 0
    assert pixels("all.png").shape == (24 + GAP, 3 * 12 + 2 * GAP, 3)


def test_every_scale_is_shown(run, drawer):
    words = ("generate", "a dog", "-m", drawer, "--seed", "3", "--grid", "2")
    assert run(*words, "-o", "all.png", "--show-scales").code == 0
    assert run(*words, "-o", "last.png").code == 0
    every, last = pixels("all.png"), pixels("last.png")
    assert every.shape == (24 + GAP, 3 * 12 + 2 * GAP, 3)
    assert np.array_equal(every[:12, -12:], last[:, :12])
    assert np.array_equal(every[-12:, -12:], last[:, -12:])
    assert not np.array_equal(every[:12, :12], every[:12, -12:])


def test_without_a_seed_pictures_differ_and_the_seed_is_told(run, drawer):
    words = ("generate", "a dog", "-m", drawer, "--overwrite", "--json")
    one, other = (json.loads(run(*words).out)["seed"] for _ in range(2))
    assert one != other
    first = pixels("generated.png")
    assert run(*words, "--seed", other).code == 0
    assert np.array_equal(pixels("generated.png"), first)


def test_what_cannot_be_written_is_told_before_any_work(run):
    words = ("generate", "a dog", "-m", "./nothing")
    code, _, err = run(*words, "-o", "picture.jpg")
    assert code == 2 and ".png" in err
    open("there.png", "w").close()
    code, _, err = run(*words, "-o", "there.png")
    assert code == 2 and "--overwrite" in err


def test_looks_can_be_given_one_by_one(run, drawer):
    words = ("generate", "a dog", "-m", drawer, "--seed", "3", "--overwrite")
    assert run(*words, "--passes", "2").code == 0
    named = pixels("generated.png")
    looks = ("--top-k", "1200", "--top-k", "1", "--top-p", "0.8", "--top-p", "0")
    assert run(*words, *looks).code == 0
    assert np.array_equal(pixels("generated.png"), named)
    assert run(*words, "--top-k", "2", "--top-p", "0.5").code == 0
    assert not np.array_equal(pixels("generated.png"), named)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((" ",), "must say something"),
        (("a dog", ""), "must say something"),
        (("a dog", "--guidance", "-1"), "'--guidance'"),
        (("a dog", "--passes", "4"), "'--passes'"),
        (("a dog", "--top-k", "-1", "--top-p", "0"), "'--top-k'"),
        (("a dog", "--top-k", "1", "--top-p", "1.5"), "'--top-p'"),
        (("a dog", "--top-k", "5", "--top-k", "1", "--top-p", "1"), "got 2 and 1"),
        (("a dog", "--grid", "0"), "'--grid'"),
    ],
)
def test_settings_out_of_range_are_usage_errors(run, options, words):
    code, out, err = run("generate", *options, "-m", "./nothing")
    assert (code, out) == (2, "") and words in err


def test_prompts_that_cannot_be_read_fail_with_their_reason(run, drawer, monkeypatch):
    code, _, err = run("generate", "a giraffe", "-m", drawer)
    assert code == 1 and "words that the text tokenizer knows" in err
    assert "'giraffe' is not" in err
    code, _, err = run("generate", "a dog a dog a dog", "-m", drawer)
    assert code == 1 and "must have at most 5 tokens, got 6" in err
    from tokenflow.generation import memory

    monkeypatch.setattr(memory, "available", lambda device: 1000)
    code, _, err = run("generate", "a dog", "-m", drawer, "--grid", "9")
    assert code == 1 and "9 pictures at once would take" in err
    assert not os.path.exists("generated.png")


def test_words_that_were_never_taught_are_named(run, tmp_path):
    model = small(image_start=300, text_length=20)
    model.text_tokenizer = learn(["a red cat", "two blue dogs"], 270)
    model.save_pretrained(tmp_path / "taught")
    words = ("-m", str(tmp_path / "taught"), "--passes", "1")
    assert run("generate", "Two red dogs!", *words).code == 0
    code, _, err = run("generate", "a red dog and a giraffe", *words, "-o", "g.png")
    assert code == 2
    assert "never taught 'dog', 'and', 'giraffe'; it knows 6 words, 'dogs'" in err


def test_a_bar_counts_the_scales_where_there_is_a_terminal(run, drawer, monkeypatch):
    shown = []

    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            shown.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Terminal())
    from tokenflow.cli._options import progress

    model = TokenFlowForGeneration.from_pretrained(drawer)
    steps = model.stream("a dog", generator=torch.Generator(), output="tokens")
    assert len(list(progress(steps, len(model.scales), "scale", lambda _: 1))) == 3
    assert "3/3" in "".join(shown) and "scale" in "".join(shown)


def test_a_missing_model_is_the_environments_fault(run):
    code, _, err = run("generate", "a dog", "-m", "./nothing")
    assert code == 3 and "'./nothing' cannot be loaded" in err


def test_a_tokenizer_is_no_generator(run, model):
    code, _, err = run("generate", "a dog", "-m", model)
    assert code == 3 and "must be a generation model" in err


def test_a_published_model_converts_and_draws(run, drawer, model, tmp_path):
    made = TokenFlowForGeneration.from_pretrained(drawer)
    weights = checkpoint.generation_to_upstream(made.state_dict())
    torch.save(weights, "t2i.pt")
    made.image_tokenizer.save_pretrained("books")
    words = ("convert", "t2i.pt", "out", "--config", f"{drawer}/config.json")
    code, out, err = run(*words, "--image-tokenizer", "./books")
    parameters = sum(p.numel() for p in made.parameters())
    assert (code, err) == (0, "")
    assert out.startswith("t2i.pt -> out  generation, 14 image tokens, ")
    assert out.endswith(f" {parameters:,} parameters, float32\n")
    read = TokenFlowForGeneration.from_pretrained("./out")
    assert all(
        torch.equal(value, made.state_dict()[key])
        for key, value in read.state_dict().items()
    )
    code, _, err = run("convert", "t2i.pt", "other", "--image-tokenizer", "./books")
    assert code == 1 and "no published schedule" in err
    code, _, err = run(*words, "--overwrite", "--image-tokenizer", model)
    assert code == 1 and "attach: the image tokenizer must have" in err
