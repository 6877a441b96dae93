"""A small text tokenizer of one's own, learned from conversations.

Pieces of bytes, so that any text can be written, joined by how often they meet
(byte-pair encoding); the marks of the templates are words of their own.
Source: ours, with the `tokenizers` package.
"""

from collections.abc import Iterable
from typing import Any

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>")


def learn_words(texts: Iterable[str], size: int) -> Any:
    """Return a text tokenizer of transformers of at most `size` words.

    Args:
        texts: What it is learned from.
        size: At least 256 bytes and the marks.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(MARKS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
