"""A teacher's continuous features in the place of tokens, to compare with."""

import pytest
import tiny_understanding as tiny
import torch

from tokenflow import TokenFlowForUnderstanding, TokenFlowUnderstandingConfig
from tokenflow.tokenizer.teachers import Teacher, load_teacher

ASK = {"max_new_tokens": 6, "do_sample": False}
ASKED = (tiny.picture(), "What is it?")


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return load_teacher(tiny.teacher_folder(tmp_path_factory.mktemp("teacher")))


def of(teacher):
    return TokenFlowForUnderstanding.from_parts(
        teacher, tiny.speaker(), tiny.words(), image_size=32
    )


@pytest.fixture(scope="module")
def model(teacher):
    return of(teacher)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "taught"
    model.save_pretrained(folder)
    return folder


def test_the_teacher_s_features_take_the_places(model, teacher):
    inputs = model.processor(tiny.picture(), model.processor.prompt("What?"))
    pixels = inputs["pixel_values"]
    assert (inputs["input_ids"] == tiny.IMAGE_ID).sum() == 16 == len(teacher(pixels)[0])
    expected = model.projector(teacher(pixels))
    torch.testing.assert_close(model.image_features(pixels), expected)
    assert model.tokenizer is None and model.config.tokenizer_config is None
    given = {n for n, p in model.named_parameters() if p.requires_grad}
    assert given and not any(name.startswith("teacher.") for name in given)


def test_it_comes_back_from_its_folder_and_answers_alike(model, folder, teacher):
    from transformers import AutoModelForImageTextToText

    read = TokenFlowForUnderstanding.from_pretrained(folder)
    auto = AutoModelForImageTextToText.from_pretrained(folder)
    inputs = model.processor(tiny.picture(), model.processor.prompt("What?"))
    for other in (read, auto):
        assert other.config.image_size == 32 and other.config.feature_width == 20
        assert torch.equal(other(**inputs).logits, model(**inputs).logits)
        assert other.answer(*ASKED, **ASK) == model.answer(*ASKED, **ASK)
    state = teacher.state_dict()
    assert state.keys() == read.teacher.state_dict().keys()


def test_the_teacher_stays_float32_and_frozen(folder, teacher):
    narrow = TokenFlowForUnderstanding.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in narrow.teacher.parameters()} == {torch.float32}
    assert narrow.dtype == torch.bfloat16 == narrow.projector[0].weight.dtype
    assert not narrow.train().teacher.training
    pixels = narrow.processor(tiny.picture(), "<image>")["pixel_values"]
    assert torch.equal(narrow.to(torch.float16).teacher(pixels), teacher(pixels))


def test_beams_see_the_pictures_of_their_rows(model):
    processor = model.processor
    texts = [
        processor.prompt("What is it?"),
        processor.prompt("And <image>, <image>?", 2),
    ]
    pictures = [tiny.picture(seed) for seed in (1, 2, 3)]
    together = model.generate(**processor(pictures, texts), num_beams=2, **ASK)
    for row, text, mine in zip(
        together, texts, (pictures[:1], pictures[1:]), strict=True
    ):
        alone = model.generate(**processor(mine, text), num_beams=2, **ASK)[0]
        assert row[-6:].tolist() == alone[-6:].tolist()


def test_there_are_no_tokens_to_give_it(model):
    with pytest.raises(ValueError, match="continuous features and has no tokens"):
        model.answer(None, "What?", indices=torch.zeros(1, 16, dtype=int))


def test_parts_that_do_not_go_together_are_told(teacher):
    with pytest.raises(ValueError, match="image_size must be given.*None with a Teach"):
        TokenFlowForUnderstanding.from_parts(teacher, tiny.speaker())
    with pytest.raises(ValueError, match="only then, got 32 with a TokenFlowTokenizer"):
        TokenFlowForUnderstanding.from_parts(tiny.eyes(), tiny.speaker(), image_size=32)
    bare = Teacher("clip", teacher.encoder)
    with pytest.raises(ValueError, match="must have options, got None"):
        of(bare)
    sizes = {**teacher.options, "image_size": 32, "tokens": 16, "width": 20}
    with pytest.raises(ValueError, match="with strategy 'continuous', got.*'last'"):
        TokenFlowUnderstandingConfig(teacher_config=sizes)
    with pytest.raises(ValueError, match="strategy must be one of .*'continuous'"):
        TokenFlowUnderstandingConfig(strategy="continuous")
