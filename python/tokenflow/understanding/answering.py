"""A question about pictures, answered in words, whole or as they come."""

from collections.abc import Iterable, Iterator
from queue import Empty
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenflow._language import TextIteratorStreamer
from tokenflow.tokenizer.model import Encoded
from tokenflow.tokenizer.processing import Pictures

if TYPE_CHECKING:
    from tokenflow.understanding.model import TokenFlowForUnderstanding

MAX_NEW_TOKENS = 512
PATIENCE = 0.5  # seconds between looks at whether the work has died


def answer(
    self: "TokenFlowForUnderstanding",
    images: Pictures | Encoded | None,
    question: str,
    *,
    indices: Tensor | Encoded | None = None,
    system: str | None = None,
    stream: bool = False,
    **generate: Any,
) -> str | Iterator[str]:
    """Answer a question about one picture, several, or none.

    Args:
        images: A PIL picture, a list of them, whatever else `encode` takes, what
            `encode` returned, or None.
        question: Pictures go in front of it, in order, unless it holds `<image>` as
            often as there are pictures; then they go there.
        indices: Instead of pictures: their tokens [n, L] or [L].
        system: Other words for the system turn than the template's.
        stream: Return an iterator of the answer's pieces as they come.
        generate: What `generate` takes. Without it the likeliest word is taken each
            time, until the answer ends, has 512 tokens, or the context is full.

    Returns:
        The answer; or, with `stream`, its pieces, whose sum it is.

    Raises:
        ValueError: The question is empty, or holds `<image>` another number of times,
            both images and indices are given, the prompt is longer than the language
            model's context, or the model has no processor.
    """
    processor = self.processor
    if isinstance(images, Encoded) and indices is None:
        images, indices = None, images
    pictures = processor._pictures(images, indices, processor.resize)
    count = sum(len(value) for value in pictures.values())
    prompt = processor.prompt(question, count, system)
    inputs = processor(
        pictures.get("pixel_values"), prompt, indices=pictures.get("indices")
    ).to(_device(self))
    self.check_context(inputs["input_ids"])
    if "generation_config" not in generate:
        length = inputs["input_ids"].shape[1]
        room = MAX_NEW_TOKENS if self.context is None else self.context - length
        generate.setdefault("max_new_tokens", min(MAX_NEW_TOKENS, max(1, room)))
        generate.setdefault("do_sample", False)
        if stops := stop_ids(self):
            generate.setdefault("eos_token_id", stops)
            generate.setdefault("pad_token_id", stops[0])
    if stream:
        return trimmed(_pieces(self, inputs, generate))
    made = self.generate(**inputs, **generate)
    return processor.decode(made[0, inputs["input_ids"].shape[1] :])


def stop_ids(model: "TokenFlowForUnderstanding") -> list[int]:
    """Return the ids that end an answer, the model's own and its processor's."""
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [] if own is None else [own]
    return sorted({*own, *model.processor.stop_ids})


def _device(model: "TokenFlowForUnderstanding") -> torch.device:
    """Return where words go in; with embeddings offloaded, where pictures do."""
    device = model.get_input_embeddings().weight.device
    return model.eye.device if device.type == "meta" else device


def _pieces(
    model: "TokenFlowForUnderstanding", inputs: Any, generate: dict[str, Any]
) -> Iterator[str]:
    """Yield words while a thread generates; stop it when nobody listens any more."""
    streamer = TextIteratorStreamer(
        model.processor.tokenizer,
        skip_prompt=True,
        timeout=PATIENCE,
        skip_special_tokens=True,
    )
    unheard, failed = Event(), []

    def stop(ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.full((len(ids),), unheard.is_set(), device=ids.device)

    def work() -> None:
        try:
            criteria = [*generate.pop("stopping_criteria", ()), stop]
            model.generate(
                **inputs, **generate, streamer=streamer, stopping_criteria=criteria
            )
        except BaseException as error:  # raised again where the words are read
            failed.append(error)
            streamer.text_queue.put(streamer.stop_signal)

    worker = Thread(target=work, daemon=True)
    worker.start()
    try:
        while True:
            try:
                yield next(streamer)
            except Empty:
                if not worker.is_alive():
                    break
            except StopIteration:
                break
    finally:
        unheard.set()
        worker.join()
    if failed:
        raise failed[0]


def trimmed(pieces: Iterable[str]) -> Iterator[str]:
    """Yield pieces without blanks around their sum."""
    held, begun = "", False
    for piece in pieces:
        held += piece
        ready = held.rstrip() if begun else held.strip()
        if ready:
            yield ready
            held, begun = held[len(held.rstrip()) :], True
