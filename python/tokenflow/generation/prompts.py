"""Words into the first positions of a sequence.

A prompt takes T text positions: padding on the left, the beginning-of-text token, its
words (cut where they are too long), and then the pieces of "<img>", which is plain text
to most tokenizers. A picture is followed by the pieces of "</img>" and the
end-of-text token.
Source: the published text-to-image code.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BEGIN, END = "<img>", "</img>"


def pieces(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of `text` without anything around them."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def prefix_ids(
    tokenizer: Any, prompts: Sequence[str], length: int, pad_id: int
) -> Tensor:
    """Return prompts as the ids in front of a picture.

    Args:
        tokenizer: Of transformers, or anything that is called like one.
        prompts: One text each.
        length: Text positions T.
        pad_id: Fills the left.

    Returns:
        [B, T + pieces of "<img>"] int64.

    Raises:
        TypeError: A prompt is no text.
    """
    begin, rows = pieces(tokenizer, BEGIN), []
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(
                f"generate: each prompt must be a str, got {type(prompt).__name__}"
            )
        ids = pieces(tokenizer, prompt)
        start = tokenizer.bos_token_id
        ids = ([] if start is None else [start]) + ids
        ids = ids[:length]
        rows.append([pad_id] * (length - len(ids)) + ids + begin)
    return torch.tensor(rows, dtype=torch.int64)


def suffix_ids(tokenizer: Any) -> Tensor:
    """Return what follows a picture: the pieces of "</img>", the end of text; [S]."""
    end = tokenizer.eos_token_id
    ids = pieces(tokenizer, END) + ([] if end is None else [end])
    return torch.tensor(ids, dtype=torch.int64)
