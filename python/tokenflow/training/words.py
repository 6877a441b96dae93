"""What a generation model is told of a picture: its caption, sometimes less.

A share of the captions becomes the empty prompt, which guidance leads away from; of
the others a share is cut to its first sentence, so that short prompts are known too.
Both are decided by the run's seed and the sample's number alone.
Source: TokenFlow, arXiv:2412.03069, section 4.1; the shares are the paper's.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenflow.generation.prompts import KNOWN, words
from tokenflow.tokenizer.byte_pairs import apart, learn_pairs

MARKS = ("[PAD]", "<s>", "</s>", "<img>", "</img>")  # ids 0 … 4 of a vocabulary
SMALL_WORLD = 1000  # words
_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class WordsConfig:
    """How captions are read.

    Args:
        tokenizer: Folder or hub id of a text tokenizer. Empty: a vocabulary of bytes
            and pairs of them, learned from the captions, as many tokens as the model
            has ids in front of its image ids.
        captions: From how many captions it is learned.
        dropped: Share of captions that become the empty prompt (the paper's 0.1).
        first_sentence: Share that is cut to its first sentence (the paper's 0.2).

    Raises:
        ValueError: A value is out of its range.
    """

    tokenizer: str = ""
    captions: int = 5000
    dropped: float = 0.1
    first_sentence: float = 0.2

    def __post_init__(self) -> None:  # noqa: D105
        if self.captions < 1:
            raise ValueError(
                f"train: words.captions must be at least 1, got {self.captions}"
            )
        for name in ("dropped", "first_sentence"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"train: words.{name} must be in [0, 1], got {getattr(self, name)}"
                )


def told(caption: str, config: WordsConfig, seed: int, number: int) -> str:
    """Return what is said of a run's sample: its caption, less, or nothing."""
    rng = random.Random(f"{seed}/words/{number}")
    drop, cut = rng.random(), rng.random()
    if drop < config.dropped:
        return ""
    return first_sentence(caption) if cut < config.first_sentence else caption


def first_sentence(caption: str) -> str:
    """Return a text up to the end of its first sentence."""
    return _END.split(caption.strip(), maxsplit=1)[0]


def learn(captions: Iterable[str], size: int, marks: tuple[str, ...] = MARKS) -> Any:
    """Learn a vocabulary, as a tokenizer of transformers: byte pairs, in lower case.

    Where the captions are of a small world, of no more than SMALL_WORLD words, those
    words are kept in its settings, so that others can be told to be strange.

    Args:
        captions: What it is learned from.
        size: Most tokens, the marks and the bytes among them.
        marks: Tokens of their own, MARKS first.

    Raises:
        ValueError: `size` does not hold every byte.
    """
    from transformers import PreTrainedTokenizerFast

    parts = list(apart(captions, marks))
    try:
        inner = learn_pairs(parts, size, marks, lower=True)
    except ValueError as error:
        raise ValueError(f"train: model.image_start: {error}") from None
    pad, begin, end, *_ = MARKS
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad, bos_token=begin, eos_token=end
    )
    known = {word for part in parts for word in words(part)}
    if len(known) <= SMALL_WORLD:
        made.init_kwargs[KNOWN] = sorted(known)
    return made
