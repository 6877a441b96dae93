"""Conversations in LLaVA's format: every byte kept, broken records told by line."""

import json
import pickle

import pytest
from PIL import Image

from tokenflow.data.dialogues import SceneDialogues, SceneQuestions
from tokenflow.data.errors import BrokenPicture
from tokenflow.data.llava import Llava, dialogue
from tokenflow.data.scenes import description

WORDS = 'Что это?\u2028日本語 \U0001f408 \x85 ünï\tquote " \\ end'


def said(*words, **record):
    turns = [
        {"from": "gpt" if i % 2 else "human", "value": w} for i, w in enumerate(words)
    ]
    return {"conversations": turns, **record}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "pictures" / "ä.png")
    (tmp_path / "pictures" / "bad.png").write_bytes(b"no picture")
    return tmp_path


def written(folder, lines, name="some.jsonl"):
    path = folder / name
    path.write_bytes(b"\n".join(lines))
    return Llava(path, folder / "pictures")


def as_bytes(record, **how):
    return json.dumps(record, **how).encode("utf-8")


@pytest.mark.parametrize("kind", ["lines", "list", "pretty list"])
@pytest.mark.parametrize("escaped", [True, False])
def test_text_in_any_language_comes_back_as_it_was(folder, kind, escaped):
    records = [said(WORDS, WORDS + "!", image="ä.png"), said("a", "b")]
    how = {"ensure_ascii": escaped, "indent": 2 if kind == "pretty list" else None}
    if kind == "lines":
        lines = [b"\xef\xbb\xbf" + as_bytes(records[0], **how), as_bytes(records[1])]
    else:
        lines = [as_bytes(records, **how)]
    found = written(folder, lines)
    assert len(found) == 2 and not found.broken
    first = found[0]
    assert first["turns"] == [
        {"role": "user", "content": f"<image>\n{WORDS}"},
        {"role": "assistant", "content": WORDS + "!"},
    ]
    assert first["images"][0].size == (5, 4)
    assert first["images"][0].getpixel((0, 0)) == (1, 2, 3)
    assert found[1]["images"] == [] and found.size(0)[1] == 1
    assert found.size(1) == (2, 0)


def test_broken_records_are_left_out_and_told_with_their_line(folder):
    good = as_bytes(said("q", "a"))
    bad = [
        b'{"conversations": [',
        b'"caf\xe9"',
        as_bytes([1]),
        as_bytes({"image": "ä.png"}),
        as_bytes(said("q")),
        as_bytes(said()),
        as_bytes(said("<image> q", "a")),
        as_bytes(said("<image><image>", "a", image="ä.png")),
        as_bytes(said("q", "<image>", image="ä.png")),
        as_bytes(said("q", "a", image=3)),
        as_bytes({"conversations": [{"from": "gpt", "value": "a"}]}),
        as_bytes({"conversations": [{"from": "x", "value": "a"}] * 2}),
        as_bytes(said("q", 7)),
        as_bytes(said("q", "\ud800")),
    ]
    lines = [good, b"", *bad, good]
    found = written(folder, lines)
    assert len(found) == 2
    told = [int(reason.split(":")[1]) for reason in found.broken]
    assert told == list(range(3, 3 + len(bad)))


def test_a_broken_record_in_a_list_is_told_with_its_line(folder):
    text = b'[\n{"conversations": 1},\n\n' + as_bytes(said("q", "a")) + b",\n[]]"
    found = written(folder, [text], "some.json")
    assert len(found) == 1
    assert [reason.split(":")[1] for reason in found.broken] == ["2", "5"]


@pytest.mark.parametrize("text", [b"[{},\n{", b"[{}\n{}]", b"[{}", b'["\xff"]'])
def test_a_list_that_is_no_json_is_refused(folder, text):
    with pytest.raises(ValueError, match=r"llava: .*must"):
        written(folder, [text])


def test_a_file_without_conversations_is_refused(folder):
    with pytest.raises(ValueError, match="it has none; the first of 1"):
        written(folder, [b"{}"])
    with pytest.raises(FileNotFoundError, match="must be a file"):
        Llava(folder / "gone.json")
    with pytest.raises(FileNotFoundError, match="folder of pictures"):
        Llava(__file__, folder / "gone")


def test_the_one_picture_goes_in_front():
    for words in ("<image>\nq", "q\n<image>", "q", "<image>q"):
        turns, images = dialogue(said(words, "a", image="x.png"))
        assert turns[0]["content"] == "<image>\nq" and images == ["x.png"]
    later = dialogue(said("p", "a", "q <image>", "b", image="x"))[0]
    assert [turn["content"] for turn in later] == ["p", "a", "<image>\nq", "b"]
    two = dialogue(said("A <image> B <image>", "a", image=["x", "y"]))[0]
    assert two[0]["content"] == "A <image> B <image>"


def test_a_picture_that_cannot_be_read_is_named(folder):
    found = written(folder, [as_bytes(said("q", "a", image="bad.png"))])
    with pytest.raises(BrokenPicture, match="bad.png"):
        found[0]
    found = written(folder, [as_bytes(said("q", "a", image="gone.png"))])
    with pytest.raises(BrokenPicture, match="gone.png"):
        pickle.loads(pickle.dumps(found))[0]


def test_scenes_are_asked_about_whole_or_question_by_question(emoji_font):
    whole = SceneDialogues("heldout", size=32, length=5)
    single = SceneQuestions(30, "heldout", size=32)
    again = pickle.loads(pickle.dumps(whole))[3]
    assert again["talks"] == whole[3]["talks"]
    assert (again["images"][0] == whole[3]["images"][0]).all()
    truth = {(q.question, q.answer) for q in whole.scenes.questions(0)}
    talks = whole.talks(0)
    assert all(turns[0]["content"].startswith("<image>\n") for turns in talks)
    told = [tuple(turn["content"] for turn in turns) for turns in talks]
    described = ("<image>\nDescribe the picture.", description(whole.scenes.truth(0)))
    assert told.pop() == described
    assert {(q.removeprefix("<image>\n"), a) for q, a in told} == truth
    first = [single[i] for i in range(len(truth))]
    assert {(s["question"], s["answer"]) for s in first} == truth
    assert all(s["turns"] in talks for s in first)
    assert len(single) == 30 and (first[0]["images"][0] == whole[0]["images"][0]).all()
