"""Every template writes what was recorded, and the model learns what it must say."""

import pytest
import tiny_understanding as tiny
from jinja2 import TemplateError

from tokenflow.understanding import prompts

QUESTION = "What is in the picture?"
TALK = [
    {"role": "user", "content": "<image>\nQ1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "Q2"},
]


def written(name, messages, **how):
    return prompts.text(prompts.render(prompts.template(name), messages, **how))


@pytest.mark.parametrize("name", sorted({*prompts.TEMPLATES} - {"brief"}))
def test_prompts_are_the_recorded_ones(golden, name):
    recorded = golden("i2t_pieces_0").meta["prompts"]
    asked = [{"role": "user", "content": prompts.with_pictures(QUESTION, 1)}]
    assert written(name, asked) == recorded[name]
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    assert written(name, [{"role": "user", "content": parts}]) == recorded[name]
    if f"{name}_two_turns" in recorded:
        assert written(name, TALK) == recorded[f"{name}_two_turns"]


def by_jinja(name, messages, **how):
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        [messages], chat_template=prompts.jinja(name), **how
    )
    return rendered[0]


@pytest.mark.parametrize("name", prompts.TEMPLATES)
def test_jinja_writes_what_was_recorded_and_what_render_writes(golden, name):
    recorded = golden("i2t_pieces_0").meta["prompts"]
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    asked = [{"role": "user", "content": parts}]
    if name != "brief":  # which is ours
        assert by_jinja(name, asked, add_generation_prompt=True) == recorded[name]
    if f"{name}_two_turns" in recorded:
        both = by_jinja(name, TALK, add_generation_prompt=True)
        assert both == recorded[f"{name}_two_turns"]
    odd = "\n {{ x }} {% if %} \"'\\n ж猫 </s> "
    system = {"role": "system", "content": odd}
    for talk in (ANSWERS, [system, *ANSWERS], [{"role": "user", "content": odd}]):
        for answer_next in (True, False):
            made = by_jinja(name, talk, add_generation_prompt=answer_next)
            assert made == written(name, talk, answer_next=answer_next)


def learned(name, messages):
    """What labels mark, as text, and how the rest reads."""
    words = tiny.words()
    words.add_tokens([prompts.IMAGE], special_tokens=True)
    pieces = prompts.render(prompts.template(name), messages, answer_next=False)
    ids, labels = prompts.tokenized(pieces, words, 3)
    assert len(ids) == len(labels)
    assert all(label in (token, -100) for token, label in zip(ids, labels, strict=True))
    said = [label for label in labels if label != -100]
    return words.decode(said), words.decode(ids)


ANSWERS = [
    {"role": "user", "content": "<image>\nWhere?"},
    {"role": "assistant", "content": "Hier, à côté 猫"},
    {"role": "user", "content": "Line\nbreak <|im_start|> Hier"},
    {"role": "assistant", "content": "Two\nlines"},
]


def test_answers_and_their_ends_are_learned_and_nothing_else():
    said, whole = learned("qwen_2_5", ANSWERS)
    assert said == "Hier, à côté 猫<|im_end|>Two\nlines<|im_end|>"
    assert whole == written("qwen_2_5", ANSWERS, answer_next=False).replace(
        "<image>", "<image>" * 3
    )
    said, _ = learned("vicuna_v1", ANSWERS)
    assert said == " Hier, à côté 猫</s> Two\nlines</s>"
    said, whole = learned("brief", ANSWERS)
    assert said == "Hier, à côté 猫<|im_end|>Two\nlines<|im_end|>"
    assert whole.startswith(
        "<image><image><image>\nWhere?\nHier, à côté 猫<|im_end|>Line"
    )
    caption = [{"role": "user", "content": "<image>"}, {**ANSWERS[1], "content": "Cat"}]
    assert learned("plain", caption) == ("Cat\n", "<image>" * 3 + "Cat\n")


def test_what_is_learned_continues_what_is_asked():
    """Ids up to an answer are those of the prompt at inference."""
    words = tiny.words()
    words.add_tokens([prompts.IMAGE], special_tokens=True)
    for name in ("qwen_2_5", "vicuna_v1", "llava_v1"):
        frame = prompts.template(name)
        asked = prompts.render(frame, TALK[:1])
        told = prompts.render(frame, TALK[:2], answer_next=False)
        prompt, _ = prompts.tokenized(asked, words, 4)
        ids, labels = prompts.tokenized(told, words, 4)
        assert ids[: len(prompt)] == prompt
        assert {*labels[: len(prompt)]} == {-100} and labels[len(prompt)] != -100


def test_a_system_turn_replaces_the_template_s():
    turns = [{"role": "system", "content": "Be brief."}, TALK[0]]
    assert written("qwen_2_5", turns).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    )


def test_pictures_go_in_front_or_where_the_question_says():
    assert prompts.with_pictures("Q", 2) == "<image>\n<image>\nQ"
    assert prompts.with_pictures("<image> or <image>?", 2) == "<image> or <image>?"
    assert prompts.with_pictures("Q", 0) == "Q"
    with pytest.raises(ValueError, match="once for each of 2 pictures, got 1 of them"):
        prompts.with_pictures("Is <image> one?", 2)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one question is needed"),
        ([{"role": "robot", "content": ""}], "got 'robot'"),
        ([TALK[0], {"role": "system", "content": "x"}], "got 'system'"),
        ([{"role": "user", "content": [{"type": "video"}]}], "got 'video'"),
    ],
)
def test_a_conversation_that_cannot_be_is_refused(messages, message):
    with pytest.raises(ValueError, match=message):
        written("qwen_2_5", messages)
    with pytest.raises(TemplateError, match=message.replace("'", "")):
        by_jinja("qwen_2_5", messages)


def test_an_unknown_template_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'qwen_2_5'.*got 'alpaca'"):
        prompts.template("alpaca")
