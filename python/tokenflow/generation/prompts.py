"""Words into the first positions of a sequence.

A prompt takes T text positions: padding on the left, the beginning-of-text token, its
words (cut where they are too long), and then the pieces of "<img>", which is plain text
to most tokenizers. A picture is followed by the pieces of "</img>" and the
end-of-text token.
Source: the published text-to-image code.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenflow.generation.config import TokenFlowGenerationConfig

Prompts = str | Sequence[str] | Tensor
BEGIN, END = "<img>", "</img>"
KNOWN = "known_words"  # in a text tokenizer's settings: all words of a small world


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


def common_padding(ids: Tensor, pad_id: int) -> int:
    """Return how many of the first positions of [B, P] ids are padding in every row."""
    return int((ids != pad_id).any(dim=0).int().argmax())


def suffix_ids(tokenizer: Any) -> Tensor:
    """Return what follows a picture: the pieces of "</img>", the end of text; [S]."""
    end = tokenizer.eos_token_id
    ids = pieces(tokenizer, END) + ([] if end is None else [end])
    return torch.tensor(ids, dtype=torch.int64)


def as_pair(
    prompts: Prompts,
    negative: Prompts | None,
    tokenizer: Any,
    config: "TokenFlowGenerationConfig",
) -> tuple[Tensor, Tensor | None]:
    """Return what is wanted and what is not as ids, [B, P] int64 each.

    Args:
        prompts: One text, several, or ids [B, P].
        negative: One for all or one each, as text or ids; None for none.
        tokenizer: For texts; may be None where there are none.
        config: Lengths and padding.

    Raises:
        TypeError: A prompt is no text.
        ValueError: There is no prompt or no tokenizer, a text is empty (of those that
            are wanted), too long or has a word that the tokenizer cannot write, or
            the two do not fit together.
    """
    wanted = _as_ids(prompts, "prompts", tokenizer, config)
    if negative is None:
        return wanted, None
    unwanted = _as_ids(negative, "negative_prompt", tokenizer, config)
    rows, width = wanted.shape
    if len(unwanted) not in (1, rows) or unwanted.shape[1] != width:
        raise ValueError(
            f"generate: negative_prompt must be one or {rows} of {width} ids as "
            f"prompts, got {list(unwanted.shape)}"
        )
    return wanted, unwanted.expand(rows, -1)


def _as_ids(
    given: Prompts, name: str, tokenizer: Any, config: "TokenFlowGenerationConfig"
) -> Tensor:
    if isinstance(given, Tensor):
        if given.ndim != 2 or given.is_floating_point() or not given.numel():
            raise ValueError(
                f"generate: {name} as a tensor must be [B, P] integers, got "
                f"{list(given.shape)} {given.dtype}"
            )
        return given.to(torch.int64)
    texts = [given] if isinstance(given, str) else list(given)
    if not texts:
        raise ValueError(f"generate: {name} must be at least one text, got none")
    if tokenizer is None:
        raise ValueError(
            f"generate: {name} as text need a text tokenizer, "
            "`model.text_tokenizer = ...`; or pass ids"
        )
    ids = prefix_ids(tokenizer, texts, config.text_length, config.pad_id)
    for number, text in enumerate(texts):
        where = name if isinstance(given, str) else f"{name}[{number}]"
        if name == "prompts" and not text.strip():
            raise ValueError(f"generate: {where} must say something, got {text!r}")
        _check_text(text, where, tokenizer, config.text_length)
    return ids


def _check_text(text: str, where: str, tokenizer: Any, length: int) -> None:
    """Raise ValueError where a text would be cut, or a word of it not be read."""
    found = pieces(tokenizer, text)
    room = length - (tokenizer.bos_token_id is not None)
    if len(found) > room:
        raise ValueError(
            f"generate: {where} must have at most {room} tokens, got {len(found)}: "
            f"{text[:60]!r}"
        )
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown not in found:
        return
    odd = [word for word in text.split() if unknown in pieces(tokenizer, word)]
    raise ValueError(
        f"generate: {where} must be of words that the text tokenizer knows, which "
        f"{', '.join(map(repr, odd)) or repr(text)} is not"
    )


def strange(tokenizer: Any, text: str) -> list[str]:
    """Return the words of a text that are none of those a model was taught.

    There are none where its text tokenizer does not keep them, see `KNOWN`.
    """
    known = {*getattr(tokenizer, "init_kwargs", {}).get(KNOWN, ())}
    return [word for word in dict.fromkeys(words(text)) if known and word not in known]


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without what stands between them."""
    return re.findall(r"\w+", text.lower())
