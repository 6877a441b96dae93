"""Pictures and prompts become one batch, and what does not fit is said."""

import pytest
import tiny_understanding as tiny
import torch

from tokenflow import Encoded, TokenFlowProcessor


@pytest.fixture
def processor():
    return TokenFlowProcessor(tiny.words(), image_size=32, image_tokens=16)


def test_a_picture_takes_its_places(processor):
    made = processor(tiny.picture(), "a<image>b")
    assert made["input_ids"].tolist()[0][1:17] == [tiny.IMAGE_ID] * 16
    assert made["input_ids"].shape == (1, 18)
    assert made["attention_mask"].tolist() == [[1] * 18]
    assert made["position_ids"].tolist() == [[*range(18)]]
    assert made["pixel_values"].shape == (1, 3, 32, 32)


def test_rows_are_padded_on_the_left(processor):
    made = processor([tiny.picture()], ["abc", "<image>"])
    assert made["attention_mask"].sum(1).tolist() == [3, 16]
    assert made["input_ids"][0, :13].tolist() == [256] * 13  # <|endoftext|>
    assert made["position_ids"][0].tolist() == [0] * 13 + [0, 1, 2]


@pytest.mark.parametrize("resize", ["pad", "crop", "squash"])
def test_a_picture_becomes_square_in_one_of_three_ways(processor, resize):
    from tokenflow.tokenizer.processing import to_batch

    wide = tiny.picture(size=(90, 30))
    made = processor(wide, "<image>", resize=resize)["pixel_values"]
    assert torch.equal(made, to_batch(wide, 32, resize))


def test_tokens_stand_for_pictures(processor):
    indices = torch.arange(42).reshape(2, 21)
    for given in (indices, Encoded(indices, torch.zeros(2, 40, 4, 4), ((1, 1),))):
        made = processor(None, "<image><image>", indices=given)
        assert torch.equal(made["indices"], indices) and "pixel_values" not in made
    assert processor(None, "<image>", indices=indices[0])["indices"].shape == (1, 21)


def test_words_alone_need_no_picture(processor):
    assert {*processor(text="Hello")} == {"input_ids", "attention_mask", "position_ids"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": tiny.picture(), "text": "no mark"}, "got 0 marks and 1 pictures"),
        ({"text": "<image>"}, "got 1 marks and 0 pictures"),
        ({"images": tiny.picture()}, "text must be given"),
        (
            {
                "images": tiny.picture(),
                "indices": torch.zeros(1, 21, dtype=int),
                "text": "<image>",
            },
            "got both",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_told(processor, given, message):
    with pytest.raises(ValueError, match=message):
        processor(**given)


def talk(*parts, answer=None):
    turns = [{"role": "user", "content": list(parts)}]
    return turns + ([{"role": "assistant", "content": answer}] if answer else [])


def image(picture):
    return {"type": "image", "image": picture}


def text(words):
    return {"type": "text", "text": words}


def test_a_conversation_with_pictures_becomes_inputs_in_one_call(processor, tmp_path):
    tiny.picture(2).save(tmp_path / "two.png")
    first = talk(image(tiny.picture(1)), text("What?"))
    second = talk(image(tiny.picture(1)), text("Or"), image(str(tmp_path / "two.png")))
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    made = processor.apply_chat_template(first, return_tensors="pt", **how)
    asked = processor(tiny.picture(1), processor.prompt("What?"))
    assert made.keys() == asked.keys()
    assert all(torch.equal(made[name], asked[name]) for name in asked)
    both = processor.apply_chat_template([first, second], **how)
    prompts = [processor.chat(first), processor.chat(second)]
    seen = [tiny.picture(1), tiny.picture(1), tiny.picture(2)]
    asked = processor(seen, prompts)
    assert all(torch.equal(both[name], asked[name]) for name in asked)
    alone = processor.apply_chat_template(talk(text("Hi")), **how)
    assert torch.equal(
        alone["input_ids"], processor(text=processor.prompt("Hi", 0))["input_ids"]
    )


def test_the_chat_template_is_the_template_until_it_is_another(processor, tmp_path):
    processor.template = "vicuna_v1"
    first = talk(text("Q"))
    asked = processor.apply_chat_template(first, add_generation_prompt=True)
    assert asked == processor.chat(first) and asked.endswith("USER: Q ASSISTANT:")
    processor.save_pretrained(tmp_path)
    read = TokenFlowProcessor.from_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == processor.chat_template
    read.template = "qwen_2_5"  # as training changes it
    asked = read.apply_chat_template(first, add_generation_prompt=True)
    assert asked == read.chat(first) and "im_start" in asked
    read.chat_template = "{{ messages[0]['role'] }}"
    read.save_pretrained(tmp_path / "own")
    other = TokenFlowProcessor.from_pretrained(tmp_path / "own")
    assert other.apply_chat_template(first) == "user"


def test_what_it_does_not_know_is_told(processor):
    for given in ({"truncation": True}, {"return_tensors": "np"}, {"padding": False}):
        with pytest.raises(TypeError, match=rf"got \['{next(iter(given))}'\]"):
            processor(text="Hello", **given)


def test_it_comes_back_from_its_folder(processor, tmp_path):
    settings = {"resize": "crop", "template": "vicuna_v1"}
    made = TokenFlowProcessor(tiny.words(), 32, 16, **settings)
    made.save_pretrained(tmp_path)
    read = TokenFlowProcessor.from_pretrained(tmp_path)
    assert (read.resize, read.template) == ("crop", "vicuna_v1")
    assert (read.image_size, read.image_tokens) == (32, 16)
    assert read.image_token_id == tiny.IMAGE_ID
    assert read.prompt("Q").endswith("USER: <image>\nQ ASSISTANT:")
    assert read.stop_ids == [258, 259]  # its own end and the template's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": "melt"}, "got 'melt'"),
        ({"template": "alpaca"}, "got 'alpaca'"),
        ({"image_size": 0}, "image_size must be ≥ 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TokenFlowProcessor(tiny.words(), **change)
