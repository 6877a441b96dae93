"""Pictures and prompts to a model's inputs.

A prompt holds `<image>` where a picture goes; each becomes as many ids as the picture
takes positions. Rows of a batch are padded on the left, so that every prompt ends
where its answer begins.
Source: the published understanding code (pictures padded to a square of grey).
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenflow._language import BatchFeature, ProcessorMixin
from tokenflow.tokenizer.model import Encoded
from tokenflow.tokenizer.processing import RESIZES, Pictures, open_image, to_batch
from tokenflow.understanding import prompts


class TokenFlowProcessor(ProcessorMixin):
    """Makes inputs of `TokenFlowForUnderstanding`, and text of its outputs.

    Args:
        tokenizer: Text tokenizer of the language model; gets the token `<image>`.
        image_size: Side R of the pictures.
        image_tokens: Positions of one picture, `config.image_tokens`.
        resize: How a picture becomes square: "pad" (as published), "crop", "squash".
        template: Name of the conversation's template, see `prompts.TEMPLATES`.
        chat_template: For `apply_chat_template`, in Jinja; `template` when None.

    Raises:
        ValueError: `resize` or `template` is unknown, or a number below 1.
    """

    model_input_names = ["input_ids", "attention_mask", "position_ids", "pixel_values"]

    def __init__(
        self,
        tokenizer: Any,
        image_size: int = 384,
        image_tokens: int = 729,
        resize: str = "pad",
        template: str = "qwen_2_5",
        chat_template: str | None = None,
    ) -> None:
        if resize not in RESIZES:
            raise ValueError(
                f"TokenFlowProcessor: resize must be one of {list(RESIZES)}, "
                f"got {resize!r}"
            )
        for name, value in (("image_size", image_size), ("image_tokens", image_tokens)):
            if value < 1:
                raise ValueError(f"TokenFlowProcessor: {name} must be ≥ 1, got {value}")
        prompts.template(template)
        if tokenizer.convert_tokens_to_ids(prompts.IMAGE) in (
            None,
            tokenizer.unk_token_id,
        ):
            tokenizer.add_tokens([prompts.IMAGE], special_tokens=True)
        self.image_size, self.image_tokens = image_size, image_tokens
        self.resize, self.template = resize, template
        self._chat_template: str | None = None
        super().__init__(tokenizer, chat_template=chat_template)

    @property
    def chat_template(self) -> str:
        """The conversation's template in Jinja, as `apply_chat_template` reads it."""
        return self._chat_template or prompts.jinja(self.template)

    @chat_template.setter
    def chat_template(self, value: str | None) -> None:
        # what is only `template` in other words follows it when it changes
        same = value is None or value == prompts.jinja(self.template)
        self._chat_template = None if same else value

    @property
    def image_token_id(self) -> int:
        """Id of `<image>`."""
        return self.tokenizer.convert_tokens_to_ids(prompts.IMAGE)

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer: the template's mark and the tokenizer's own."""
        end = prompts.template(self.template).end
        ids = self.tokenizer(end, add_special_tokens=False)["input_ids"]
        found = ids if len(ids) == 1 else []
        own = self.tokenizer.eos_token_id
        return sorted({*found, *([] if own is None else [own])})

    def prompt(
        self, question: str, pictures: int = 1, system: str | None = None
    ) -> str:
        """Return the text that asks a question about some pictures.

        Args:
            question: Pictures go in front of it unless it holds `<image>` itself.
            pictures: How many there are.
            system: Other words for the system turn than the template's.

        Raises:
            ValueError: The question is empty (of the template "plain" it may be), or
                holds `<image>` neither as often as there are pictures nor at all.
        """
        if self.template != "plain" and not question.replace(prompts.IMAGE, "").strip():
            raise ValueError(
                f"prompt: question must have at least 1 word, got {question!r}"
            )
        turns = [{"role": "user", "content": prompts.with_pictures(question, pictures)}]
        if system is not None:
            turns.insert(0, {"role": "system", "content": system})
        return self.chat(turns)

    def chat(
        self, messages: Sequence[prompts.Message], *, answer_next: bool = True
    ) -> str:
        """Return a conversation as text; see `prompts.render`."""
        frame = prompts.template(self.template)
        return prompts.text(prompts.render(frame, messages, answer_next=answer_next))

    def __call__(
        self,
        images: Pictures | None = None,
        text: str | Sequence[str] | None = None,
        *,
        indices: Tensor | Encoded | None = None,
        resize: str | None = None,
        return_tensors: str = "pt",
        padding: bool | str = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """Make one batch.

        Args:
            images: Pictures in the order of the marks `<image>` in all prompts; what
                `tokenizer.processing.to_batch` takes, paths of files among them, or
                a list of such for each prompt.
            text: One prompt or a list of B, from `prompt` or `chat`.
            indices: Instead of pictures: their tokens [n, L], or what `encode`
                returned.
            resize: Another way to a square than the processor's.
            return_tensors: "pt".
            padding: True or "longest": rows of a batch are always padded.

        Returns:
            `input_ids`, `attention_mask` and `position_ids` [B, T] int64, padded on
            the left; and `pixel_values` [n, 3, R, R] float32 or `indices` [n, L].

        Raises:
            ValueError: Pictures and marks are not as many, or both pictures and
                indices are given.
            TypeError: Something else is asked for.
        """
        # transformers names the kinds of input that a conversation does not have
        others = {k: v for k, v in kwargs.items() if v is not None}
        others |= {} if return_tensors == "pt" else {"return_tensors": return_tensors}
        others |= {} if padding in (True, "longest") else {"padding": padding}
        if others:
            raise TypeError(
                "TokenFlowProcessor: takes images, text, indices, resize, padding=True "
                f'and return_tensors="pt", got {sorted(others)}'
            )
        if text is None:
            raise ValueError("TokenFlowProcessor: text must be given, got None")
        lines = [text] if isinstance(text, str) else list(text)
        pictures = self._pictures(images, indices, resize or self.resize)
        marks = sum(line.count(prompts.IMAGE) for line in lines)
        given = sum(len(value) for value in pictures.values())
        if marks != given:
            raise ValueError(
                f"TokenFlowProcessor: text must hold {prompts.IMAGE} once for each "
                f"picture, got {marks} marks and {given} pictures"
            )
        rows = [
            prompts.tokenized([(line, False)], self.tokenizer, self.image_tokens)[0]
            for line in lines
        ]
        return BatchFeature({**self._padded(rows), **pictures})

    def _pictures(
        self, images: Any, indices: Tensor | Encoded | None, resize: str
    ) -> dict[str, Tensor]:
        if images is not None and indices is not None:
            raise ValueError(
                "TokenFlowProcessor: pictures or indices must be given, got both"
            )
        if indices is not None:
            indices = indices.indices if isinstance(indices, Encoded) else indices
            return {"indices": indices[None] if indices.ndim == 1 else indices}
        if isinstance(images, str | os.PathLike):
            images = [images]
        if isinstance(images, list | tuple):
            nested = [p if isinstance(p, list | tuple) else [p] for p in images]
            images = [_opened(picture) for row in nested for picture in row]
            if not images:
                return {}
        if images is None:
            return {}
        return {"pixel_values": to_batch(images, self.image_size, resize)}

    def _padded(self, rows: list[list[int]]) -> dict[str, Tensor]:
        fill = self.tokenizer.pad_token_id
        fill = self.tokenizer.eos_token_id if fill is None else fill
        longest = max(map(len, rows))
        ids = [[fill or 0] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        attention = torch.tensor(mask)
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": attention,
            "position_ids": positions(attention),
        }

    def decode(self, ids: Any) -> str:
        """Return the words of generated ids, without marks."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def batch_decode(self, rows: Any) -> list[str]:
        """Return the words of each row of generated ids."""
        return [self.decode(row) for row in rows]


def _opened(picture: Any) -> Any:
    return open_image(picture) if isinstance(picture, str | os.PathLike) else picture


def positions(attention: Tensor) -> Tensor:
    """Return each token's place among those that count: [B, T] → [B, T] int64."""
    return (attention.long().cumsum(-1) - 1).clamp_min(0)
