"""Questions about scenes scored by hand; predictions in each benchmark's format."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_understanding import model
from typer.testing import CliRunner

from tokenflow.evaluation import benchmarks, questions
from tokenflow.evaluation.questions import evaluate_scenes, interval, plain, scores

SAID = [  # kind, truth, answer, blind answer
    ("count", "2", "2", "3"),
    ("count", "2", "3", "2"),
    ("count", "3", " 3. ", "1"),
    ("colour", "red", "Red", "red"),
    ("colour", "blue", "a red", "red"),
]


def test_shares_are_those_of_the_answers_counted_by_hand():
    row = scores(SAID)
    assert (row["questions"], row["right"], row["exact"]) == (5, 3, 0.6)
    assert row["blind"] == 0.4 and row["majority"] == 0.6  # 2, 2 and one colour
    assert row["majority_answer"] is None
    count = scores(SAID[:3])
    assert count["majority_answer"] == "2" and count["majority"] == 2 / 3


def test_answers_are_compared_without_case_blanks_and_stop():
    assert plain("  Yes. ") == "yes" and plain("to the left") == "to the left"


def test_the_interval_is_wilsons():
    low, high = interval(8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval(0, 10)[0] == 0.0
    assert interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


class Oracle:
    """Stands for `ask`: knows the truth of who comes with a picture."""

    def __init__(self, source):
        self.truth = {}
        for i in range(len(source)):
            sample = source[i]
            self.truth[sample["question"], str(sample["images"][0].sum())] = sample

    def __call__(self, model, asked, pictures=None):
        if pictures is None:
            return ["yes"] * len(asked)
        return [
            self.truth[question, str(picture.sum())]["answer"].upper()
            for question, picture in zip(asked, pictures, strict=True)
        ]


def test_each_question_is_asked_with_its_own_picture(monkeypatch, emoji_font):
    source = questions.SceneQuestions(50, size=32, seed=questions.SEED)
    monkeypatch.setattr(questions, "ask", Oracle(source))
    found = evaluate_scenes(model(), 50, batch_size=7)
    assert found["all"]["exact"] == 1.0 and found["all"]["questions"] == 50
    kinds = [source[i]["kind"] for i in range(50)]
    assert {k: r["questions"] for k, r in found["kinds"].items()} == {
        kind: kinds.count(kind) for kind in set(kinds)
    }
    yes = [source[i]["answer"] for i in range(50)].count("yes")
    assert found["all"]["blind"] == yes / 50
    assert "existence" in questions.as_text(found)


def test_a_model_answers_the_same_one_by_one_and_together():
    made = model()
    asked = ["What?", "And is this a longer question?"]
    pictures = [Image.new("RGB", (32, 32), c) for c in ((9, 9, 9), (200, 0, 0))]
    together = questions.ask(made, asked, pictures, new_words=4)
    single = [
        questions.ask(made, [q], [p], new_words=4)[0]
        for q, p in zip(asked, pictures, strict=True)
    ]
    assert together == single
    assert together[0] == made.answer(pictures[0], asked[0], max_new_tokens=4)
    assert len(questions.ask(made, asked, new_words=2)) == 2


ASKED = [
    {"id": 7, "image": "a/x.png", "text": "Is\tit?", "category": "ocr", "label": "Yes"},
    {"id": 8, "image": "y.png", "text": "Sure?", "category": "code", "label": "No"},
]


def test_predictions_are_in_each_benchmarks_format(tmp_path):
    answers = ["Yes.", "nö"]
    for name in benchmarks.BENCHMARKS:
        benchmarks.write_predictions(tmp_path / name, name, ASKED, answers)
    lines = (tmp_path / "pope").read_text("utf-8").splitlines()
    assert json.loads(lines[1]) == {
        "question_id": 8,
        "question": "Sure?",
        "answer": "nö",
    }
    assert json.loads((tmp_path / "gqa").read_text("utf-8")) == [
        {"questionId": "7", "prediction": "yes"},
        {"questionId": "8", "prediction": "nö"},
    ]
    assert json.loads((tmp_path / "vqav2").read_text("utf-8"))[0] == {
        "question_id": 7,
        "answer": "yes",
    }
    assert (tmp_path / "mme" / "ocr.txt").read_text() == "x.png\tIs it?\tYes\tYes.\n"
    assert sorted(p.name for p in (tmp_path / "mme").iterdir()) == [
        "code.txt",
        "ocr.txt",
    ]


def test_a_line_that_is_no_question_is_named(tmp_path):
    path = tmp_path / "q.jsonl"
    for words, complaint in (
        ('{"question_id": 1, "image": "x", "text": "t"}\n{', "q.jsonl:2 must be"),
        ('{"question_id": 1, "image": "x"}', "has no text"),
        ("[]", "q.jsonl:1 must be"),
        ("", "it has none"),
    ):
        path.write_text(words)
        with pytest.raises(ValueError, match=complaint):
            benchmarks.read_questions(path, "pope")
    path.write_text('{"question_id": 1, "image": "x", "text": "t"}')
    with pytest.raises(ValueError, match="has no category"):
        benchmarks.read_questions(path, "mme")


def test_a_question_is_asked_for_a_short_answer_once():
    asked = benchmarks.prompt("<image>\nIs it?")
    assert asked == f"Is it?\n{benchmarks.SHORT}" == benchmarks.prompt(asked)


def test_the_command_answers_a_benchmark(tmp_path):
    from tokenflow.cli.evaluate import app

    model().save_pretrained(tmp_path / "model")
    (tmp_path / "q.jsonl").write_text(
        '{"questionId": "a1", "image": "x.png", "question": "What?"}\n'
    )
    Image.new("RGB", (20, 32), (9, 9, 9)).save(tmp_path / "x.png")
    run = CliRunner().invoke
    task = ["understanding", "-m", str(tmp_path / "model"), "--task", "gqa"]
    files = ["--questions", str(tmp_path / "q.jsonl"), "--images", str(tmp_path)]
    made = run(app, [*task, *files, "-o", str(tmp_path / "out.json"), "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads((tmp_path / "out.json").read_text())[0]["questionId"] == "a1"
    (tmp_path / "q.jsonl").write_text(
        '{"questionId": "a0", "image": "gone.png", "question": "What?"}\n'
        '{"questionId": "a1", "image": "x.png", "question": "What?"}\n'
        '{"questionId": "a2", "image": "q.jsonl", "question": "What?"}\n'
    )
    part = run(app, [*task, *files, "-o", str(tmp_path / "part.json"), "--json"])
    assert part.exit_code == 1  # the others were answered
    said = [json.loads((tmp_path / n).read_text()) for n in ("out.json", "part.json")]
    assert said[0] == said[1]
    told = json.loads(part.stdout)
    assert told["questions"] == 1
    names = [Path(entry["input"]).name for entry in told["failed"]]
    assert names == ["gone.png", "q.jsonl"]
    assert run(app, task).exit_code == 2
    assert run(app, ["understanding", "--out", "x"]).exit_code == 2


def test_the_command_scores_scenes(tmp_path, emoji_font):
    from tokenflow.cli.evaluate import app

    made = model()
    made.save_pretrained(tmp_path)
    words = ["understanding", "-m", str(tmp_path), "--count", "5", "-b", "3"]
    words += ["--device", "cpu"]
    told = CliRunner().invoke(app, [*words, "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["all"]["questions"] == 5 and found["task"] == "scenes-vqa"
    expected = evaluate_scenes(made, 5, batch_size=3)
    assert found["kinds"] == expected["kinds"] and found["all"] == expected["all"]
    table = CliRunner().invoke(app, words)
    assert table.stdout == questions.as_text(expected) + "\n"
