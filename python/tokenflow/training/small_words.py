"""A small text tokenizer of one's own, learned from conversations.

The marks of the templates are tokens of their own; see `byte_pairs` for the rest.
"""

from collections.abc import Iterable
from typing import Any

from tokenflow.tokenizer.byte_pairs import learn_pairs

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>")


def learn_words(texts: Iterable[str], size: int) -> Any:
    """Return a text tokenizer of transformers of at most `size` tokens.

    Args:
        texts: What it is learned from.
        size: At least 256 bytes and the marks.

    Raises:
        ValueError: It is less.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=learn_pairs(texts, size, MARKS, lower=False),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
