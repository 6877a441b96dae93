"""Questions about pictures, answered in words: all at once, or as they come.

The conversation is read once; each further word is one position behind the keys and
values that are kept. Rows of a batch are padded on the left and end by themselves.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow.generation import places, sampling
from tokenflow.generation.llama import Cache
from tokenflow.tokenizer.model import Encoded
from tokenflow.tokenizer.processing import Pictures
from tokenflow.understanding.answering import MAX_NEW_TOKENS, trimmed
from tokenflow.understanding.prompts import IMAGE

if TYPE_CHECKING:
    from tokenflow.unified.model import TokenFlowUnified

UNFINISHED = "\ufffd"  # the end of a text whose last letter has bytes to come


def answer(
    self: "TokenFlowUnified",
    images: Pictures | Encoded | None,
    question: str | Sequence[str],
    *,
    indices: Tensor | Encoded | None = None,
    system: str | None = None,
    stream: bool = False,
    max_new_tokens: int = MAX_NEW_TOKENS,
    do_sample: bool = False,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> str | list[str] | Iterator[str]:
    """Answer a question about pictures, or several questions at once.

    Args:
        images: A PIL picture, a list of them, whatever else `encode` takes, what
            `encode` returned, or None.
        question: One: pictures go in front of it, in order, unless it holds `<image>`
            as often as there are pictures; then they go there. Several: each has one
            picture in front, the next one, unless it holds `<image>`, however often.
        indices: Instead of pictures: their tokens [n, N] or [N].
        system: Other words for the system turn than the template's.
        stream: Return an iterator of the answer's pieces as they come.
        max_new_tokens: Length of an answer at most.
        do_sample: Draw words instead of taking the likeliest.
        temperature: What logits are divided by for that, above 0.
        generator: For the draws; torch's own when None.

    Returns:
        The answer; or a list, one for each of several questions; or, with `stream`, an
        answer's pieces, whose sum it is.

    Raises:
        TypeError: A question is no text.
        ValueError: A question is empty or there is none, `<image>` and pictures are not
            as many, both images and indices are given, or a setting is out of range.
    """
    asked = [question] if isinstance(question, str) else list(question)
    _check(asked, question, stream, max_new_tokens, temperature)
    inputs = _inputs(self, images, indices, asked, question, system)
    processor = self.processor
    stops = torch.tensor(processor.stop_ids, device=self.device)

    def choose(logits: Tensor) -> Tensor:
        if not do_sample:
            return logits.argmax(-1)
        return sampling.draw(logits[:, None] / temperature, 0, 0.0, generator)[:, 0]

    steps = say(self, inputs, stops, max_new_tokens, choose)
    if stream:
        return trimmed(_pieces(processor, steps))
    told = processor.batch_decode(torch.stack(list(steps), dim=1))
    return told[0] if isinstance(question, str) else told


def _check(
    asked: list[str], question: Any, stream: bool, most: int, temperature: float
) -> None:
    for one in asked:
        if not isinstance(one, str):
            raise TypeError(
                f"answer: a question must be a str, got {type(one).__name__}"
            )
    if not asked:
        raise ValueError("answer: question must be at least one text, got none")
    if stream and not isinstance(question, str):
        raise ValueError(
            f"answer: stream must be False with several questions, got {len(asked)}"
        )
    if most < 1:
        raise ValueError(f"answer: max_new_tokens must be ≥ 1, got {most}")
    if not temperature > 0:
        raise ValueError(f"answer: temperature must be > 0, got {temperature}")


def _inputs(
    model: "TokenFlowUnified",
    images: Any,
    indices: Tensor | Encoded | None,
    asked: list[str],
    question: Any,
    system: str | None,
) -> dict[str, Tensor]:
    """Return what `TokenFlowUnified.read` takes."""
    if isinstance(images, Encoded) and indices is None:
        images, indices = None, images
    processor = model.processor
    pictures = processor._pictures(images, indices, processor.resize)
    count = sum(map(len, pictures.values()))
    each = [count]
    if not isinstance(question, str):
        each = [one.count(IMAGE) or min(count, 1) for one in asked]
    prompts = [
        processor.prompt(one, many, system)
        for one, many in zip(asked, each, strict=True)
    ]
    pixels, tokens = pictures.get("pixel_values"), pictures.get("indices")
    found = processor(pixels, prompts, indices=tokens).to(model.device)
    if pixels is not None:
        tokens = model.image_tokenizer.encode(found["pixel_values"]).indices
    ids = {name: found[name] for name in ("input_ids", "attention_mask")}
    return ids if tokens is None else {**ids, "pictures": tokens.to(model.device)}


@torch.no_grad()
def say(
    model: "TokenFlowUnified",
    inputs: dict[str, Tensor],
    stops: Tensor,
    most: int,
    choose: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    """Yield the next id of each row until all have ended.

    Args:
        model: Who speaks.
        inputs: What `read` takes, padded on the left.
        stops: [S] int64, ids that end a row; padding follows.
        most: Ids at most.
        choose: Takes logits [B, text ids], returns ids [B].

    Yields:
        [B] int64.
    """
    real, unsaid = inputs["attention_mask"], model.processor.image_token_id
    kept: list[tuple[Tensor, Tensor]] = []
    last = model.read(**inputs, kept=kept)[:, -1:]
    cache = Cache(kept, torch.arange(len(real), device=real.device), most)
    ended = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    read, seen = real.sum(1, keepdim=True), real.bool()[:, None, None]
    for number in range(most):
        logits = model.text_logits(last[:, 0])
        logits[:, unsaid] = -torch.inf
        ids = choose(logits).masked_fill(ended, model.config.pad_id)
        yield ids
        ended |= torch.isin(ids, stops)
        if ended.all() or number + 1 == most:
            return
        seen = F.pad(seen, (0, 1), value=True)
        x = model.embed(ids[:, None]) + model.levels[0]
        where = places.of_words(read + number, model.config.places)
        last = model.llama(x, where, seen, cache)
        cache.settle()


def _pieces(processor: Any, steps: Iterator[Tensor]) -> Iterator[str]:
    """Yield the text of a single row as it grows, whole letters only."""
    ids: list[int] = []
    told = ""
    for step in steps:
        ids.append(int(step[0]))
        text = processor.tokenizer.decode(ids, skip_special_tokens=True)
        if not text.endswith(UNFINISHED):
            yield text[len(told) :]
            told = text
    yield processor.tokenizer.decode(ids, skip_special_tokens=True)[len(told) :]
