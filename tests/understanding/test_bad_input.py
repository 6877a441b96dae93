"""What cannot be asked is refused at once, and the message has the numbers."""

import pytest
import tiny_understanding as tiny
import torch
from PIL import Image

from tokenflow.evaluation.questions import ask

LENGTH = 90  # the language model's context


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


@pytest.fixture(scope="module")
def model():
    return tiny.model(text={"max_position_embeddings": LENGTH})


ONE, TWO = tiny.picture(), [tiny.picture(1), tiny.picture(2)]


@pytest.mark.parametrize(
    ("pictures", "question", "message"),
    [
        (None, "What is <image>?", "each of 0 pictures, got 1 of them"),
        (ONE, "Is <image> like <image>?", "each of 1 pictures, got 2 of them"),
        (TWO, "Is <image> one?", "each of 2 pictures, got 1 of them"),
        (ONE, "", "at least 1 word, got ''"),
        (ONE, " \n", r"at least 1 word, got ' \\n'"),
        (ONE, "<image>", "at least 1 word, got '<image>'"),
        (ONE, "why " * 20, r"at most 90 positions.*, got 1\d\d, 16 of them of pict"),
        (Image.new("1", (10_001, 10_000)), "Q", "100,000,000 pixels, got 10001×10000"),
        (Image.new("L", (0, 5)), "Q", "must not be empty, got 0×5"),
    ],
    ids=str,
)
def test_an_impossible_question_is_refused_with_its_numbers(
    model, pictures, question, message
):
    for stream in (False, True):  # before the first word
        with pytest.raises(ValueError, match=message):
            model.answer(pictures, question, stream=stream)


def test_a_long_prompt_is_refused_wherever_it_goes_in(model):
    inputs = model.processor(ONE, model.processor.prompt("why " * 20))
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="at most 90 positions"):
            call(**inputs)
    with pytest.raises(ValueError, match="at most 90 positions"):
        ask(model, ["short", "why " * 20], TWO)


def test_an_answer_ends_where_the_context_is_full(model, monkeypatch):
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    monkeypatch.setattr(type(model.processor), "stop_ids", [])
    seen = []
    inputs = model.processor(ONE, model.processor.prompt("Why?"))
    length = inputs["input_ids"].shape[1]
    generate = model.generate

    def watched(**how):
        made = generate(**how)
        seen.append(made.shape[1])
        return made

    monkeypatch.setattr(model, "generate", watched)
    model.answer(ONE, "Why?")
    model.answer(ONE, "Why?", max_new_tokens=3)
    assert seen == [LENGTH, length + 3]


def test_a_caption_needs_no_question():
    model = tiny.model(template="plain")
    assert model.processor.prompt("") == "<image>\n\n"
    assert torch.is_tensor(
        model.processor(ONE, model.processor.prompt(""))["input_ids"]
    )
