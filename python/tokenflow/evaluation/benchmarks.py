"""Predictions for public benchmarks, in the files their own scripts judge.

Questions are one JSON object per line: "question_id" (or "questionId"), "image"
relative to a folder, and "text" (or "question"); POPE's own files and those of LLaVA
are such. MME's need "category" too, and "label" where there is one. What is written:
  pope    lines of {"question_id", "question", "answer"}
  gqa     a list of {"questionId", "prediction"}
  vqav2   a list of {"question_id", "answer"}
  mme     a folder, CATEGORY.txt with lines of image, question, label, answer by tabs
Scores are those scripts' business: none is worked out here.
Source: the benchmarks' own evaluation code.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenflow._files import writing
from tokenflow._pictures import open_image
from tokenflow.evaluation.questions import Speaker, ask, in_batches, plain

BENCHMARKS = ("pope", "gqa", "vqav2", "mme")
SHORT = "Answer the question using a single word or phrase."  # as LLaVA-1.5 asks


def read_questions(path: Path, benchmark: str) -> list[dict[str, Any]]:
    """Return the questions of a file: "id", "image", "text", "category", "label".

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no question.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(
            f"evaluate: task must be one of {list(BENCHMARKS)}, got {benchmark!r}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"evaluate: {path} must be a file of questions")
    found = []
    for line, words in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not words.strip():
            continue
        try:
            row = json.loads(words.decode("utf-8-sig"))
            asked = {
                "id": row.get("question_id", row.get("questionId")),
                "image": row["image"],
                "text": row.get("text", row.get("question")),
                "category": row.get("category"),
                "label": row.get("label", ""),
            }
            needed = ("id", "text", *(["category"] if benchmark == "mme" else []))
            gone = [name for name in needed if asked[name] is None]
            if gone:
                raise ValueError(f"it has no {gone[0]}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"evaluate: {path}:{line} must be a question ({error!r})"
            ) from None
        found.append(asked)
    if not found:
        raise ValueError(f"evaluate: {path} must hold questions, it has none")
    return found


def predict(
    model: Speaker,
    questions: Sequence[dict[str, Any]],
    images: Path,
    *,
    batch_size: int = 8,
    watch: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    failed: Callable[[str, Exception], None] | None = None,
) -> list[str | None]:
    """Return the model's answer to each question.

    Args:
        model: Who is asked.
        questions: Of `read_questions`.
        images: Folder of their pictures.
        batch_size: Questions at a time.
        watch: Wraps what is gone through, for a progress bar.
        failed: Takes the name of a picture that is not there or cannot be read, and
            why; the question's answer is then None, the others of its batch go on.

    Raises:
        OSError: A picture is not there, and there is no `failed`.
        ValueError: One cannot be read, likewise; or a prompt is longer than the
            language model's context.
    """
    answers: list[str | None] = []
    for part in watch(list(in_batches(questions, batch_size))):
        good, pictures = [], []
        for place, asked in enumerate(part):
            try:
                pictures.append(open_image(images / asked["image"]))
            except (OSError, ValueError) as error:
                if failed is None:
                    raise
                failed(asked["image"], error)
            else:
                good.append(place)
        found: list[str | None] = [None] * len(part)
        said = ask(model, [prompt(part[i]["text"]) for i in good], pictures)
        for place, answer in zip(good, said, strict=True):
            found[place] = answer
        answers += found
    return answers


def prompt(text: str) -> str:
    """Return a question as it is asked: for a short answer, without a mark."""
    text = text.replace("<image>", "").strip()
    return text if text.endswith(SHORT) else f"{text}\n{SHORT}"


def write_predictions(
    path: Path,
    benchmark: str,
    questions: Sequence[dict[str, Any]],
    answers: Sequence[str | None],
) -> None:
    """Write answers the way a benchmark's script reads them; None is left out."""
    pairs = [
        (asked, answer)
        for asked, answer in zip(questions, answers, strict=True)
        if answer is not None
    ]
    if benchmark == "mme":
        path.mkdir(parents=True, exist_ok=True)
        for category in sorted({asked["category"] for asked, _ in pairs}):
            lines = [
                "\t".join(
                    _line(part)
                    for part in (
                        Path(asked["image"]).name,
                        asked["text"],
                        asked["label"],
                        answer,
                    )
                )
                for asked, answer in pairs
                if asked["category"] == category
            ]
            _write(path / f"{category}.txt", "\n".join(lines) + "\n")
        return
    if benchmark == "pope":
        rows = [
            {"question_id": a["id"], "question": a["text"], "answer": said}
            for a, said in pairs
        ]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        _write(path, "\n".join(lines) + "\n")
        return
    if benchmark == "gqa":
        rows = [{"questionId": str(a["id"]), "prediction": plain(s)} for a, s in pairs]
    else:
        rows = [{"question_id": a["id"], "answer": plain(said)} for a, said in pairs]
    _write(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def _line(value: Any) -> str:
    return " ".join(str(value).split())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as beside:
        beside.write_text(text, encoding="utf-8")
