"""How well a model answers questions about drawn scenes whose truth is known.

Per kind of question: the share of answers that are the true one to the letter, with a
95 % interval (Wilson's), beside what the same questions give without their picture
("blind") and what the most frequent answer of that kind gives. The majority is that of
the judged questions themselves, the best that one answer could do.
Source: ours; the interval is E. B. Wilson's, 1927.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from tokenflow.data.dialogues import SceneQuestions
from tokenflow.understanding.answering import stop_ids
from tokenflow.understanding.model import TokenFlowForUnderstanding
from tokenflow.unified.model import TokenFlowUnified

Speaker = TokenFlowForUnderstanding | TokenFlowUnified
SEED = 2024  # of the scenes that are judged; training uses others
NEW_WORDS = 16  # of an answer at most


def evaluate_scenes(
    model: Speaker,
    count: int = 1000,
    *,
    split: str = "heldout",
    batch_size: int = 32,
    blind: Speaker | None = None,
    watch: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Ask a model about scenes that training never showed.

    Args:
        model: What is judged, with its processor.
        count: Questions.
        split: Of `Scenes`: "heldout", "objects" or "combinations".
        batch_size: Questions at a time.
        blind: Who is asked without pictures; the same model when None.
        watch: Wraps what is gone through, for a progress bar.

    Returns:
        {"questions", "split", "kinds": {kind: row}, "all": row}; a row has "questions",
        "right", "exact" (share), "interval" [low, high], "blind", "majority" (shares)
        and "majority_answer".

    Raises:
        ValueError: A number is below 1.
    """
    for name, value in (("count", count), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"evaluate: {name} must be at least 1, got {value}")
    size = model.processor.image_size
    source = SceneQuestions(count, split, size=size, seed=SEED)
    said: list[tuple[str, str, str, str]] = []  # kind, truth, answer, blind answer
    parts = [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
    for part in watch(parts):
        samples = [source[i] for i in part]
        asked = [sample["question"] for sample in samples]
        seen = ask(model, asked, [sample["images"][0] for sample in samples])
        unseen = ask(blind or model, asked)
        said += [
            (sample["kind"], sample["answer"], one, other)
            for sample, one, other in zip(samples, seen, unseen, strict=True)
        ]
    kinds = sorted({kind for kind, *_ in said})
    rows = {kind: scores([row for row in said if row[0] == kind]) for kind in kinds}
    return {"questions": count, "split": split, "kinds": rows, "all": scores(said)}


@torch.no_grad()
def ask(
    model: Speaker,
    questions: Sequence[str],
    pictures: Sequence[Any] | None = None,
    *,
    new_words: int = NEW_WORDS,
) -> list[str]:
    """Return the likeliest answers to questions, one picture each or none at all."""
    if not questions:
        return []
    images = None if pictures is None else list(pictures)
    if isinstance(model, TokenFlowUnified):
        return list(model.answer(images, list(questions), max_new_tokens=new_words))
    processor = model.processor
    prompts = [processor.prompt(q, 0 if pictures is None else 1) for q in questions]
    inputs = processor(images, prompts).to(model.get_input_embeddings().weight.device)
    stops = stop_ids(model)
    made = model.generate(
        **inputs,
        max_new_tokens=new_words,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=stops[0],
    )
    return processor.batch_decode(made[:, inputs["input_ids"].shape[1] :])


def plain(answer: str) -> str:
    """Return an answer as it is compared: lower case, no blanks or stop around it."""
    return answer.strip().removesuffix(".").strip().lower()


def scores(said: Sequence[tuple[str, str, str, str]]) -> dict[str, Any]:
    """Return a row of the result, of (kind, truth, answer, blind answer) each."""
    count = len(said)
    right = sum(plain(answer) == plain(truth) for _, truth, answer, _ in said)
    blind = sum(plain(answer) == plain(truth) for _, truth, _, answer in said)
    # the best that one answer per kind can do
    kinds = {kind: Counter(t for k, t, *_ in said if k == kind) for kind, *_ in said}
    most = {kind: min(c, key=lambda a: (-c[a], a)) for kind, c in kinds.items()}
    majority = sum(kinds[kind][answer] for kind, answer in most.items())
    return {
        "questions": count,
        "right": right,
        "exact": right / count,
        "interval": list(interval(right, count)),
        "blind": blind / count,
        "majority": majority / count,
        "majority_answer": next(iter(most.values())) if len(most) == 1 else None,
    }


def interval(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    share, wide = right / count, z * z / count
    middle = share + wide / 2
    reach = z * math.sqrt(share * (1 - share) / count + wide / (4 * count))
    low, high = ((middle + sign * reach) / (1 + wide) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def as_text(result: dict[str, Any]) -> str:
    """Return the result as lines to read."""
    lines = [
        f"{'':<12}{'questions':>10}{'exact':>8}{'95 %':>16}{'blind':>8}{'most':>8}"
    ]
    for name, row in (*result["kinds"].items(), ("all", result["all"])):
        low, high = row["interval"]
        lines.append(
            f"{name:<12}{row['questions']:>10}{row['exact']:>8.1%}"
            f"{f'{low:.1%} – {high:.1%}':>16}{row['blind']:>8.1%}"
            f"{row['majority']:>8.1%}"
        )
    return "\n".join(lines)


def in_batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield runs of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
