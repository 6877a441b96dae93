"""Vocabularies of one's own: bytes, and pairs of them that often meet.

Any text of any script can be written, since every byte has a token; what is learned
are the joins.
Source: byte-pair encoding, arXiv:1508.07909, on bytes; the `tokenizers` package.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

BYTES = 256


def apart(texts: Iterable[str], marks: Sequence[str]) -> Iterator[str]:
    """Yield what is between the marks, which is all that pairs are looked for in."""
    mark = re.compile("|".join(map(re.escape, marks)))
    for text in texts:
        yield from mark.split(text)


def learn_pairs(
    texts: Iterable[str], size: int, marks: Sequence[str], *, lower: bool
) -> Any:
    """Return a `tokenizers.Tokenizer` of at most `size` tokens.

    Args:
        texts: What it is learned from; marks in them are stepped over.
        size: Most tokens; the marks are the first, then come the bytes.
        marks: Tokens of their own, never made of bytes.
        lower: Whether every text is read in lower case, its characters in one form
            (NFKC), its first word like all others.

    Raises:
        ValueError: `size` does not hold every mark and byte.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from tokenizers.pre_tokenizers import ByteLevel

    if size < BYTES + len(marks):
        raise ValueError(
            f"a vocabulary must have at least {BYTES + len(marks)} tokens, the bytes "
            f"and {len(marks)} marks, got {size}"
        )
    made = Tokenizer(models.BPE())
    if lower:
        made.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Lowercase()]
        )
    made.pre_tokenizer = ByteLevel(add_prefix_space=lower)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(marks),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(apart(texts, marks), trainer)
    return made
