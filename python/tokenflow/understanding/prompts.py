"""How a conversation is written down for a language model, and which words it learns.

A template frames turns; `render` gives the text in pieces that are learned or not,
`tokenized` makes ids and labels of them. What is learned is what the model must say
itself: each answer and the mark that ends it.

The published fine-tuning code marks more with ChatML: every newline, `<|im_start|>`
and `<|im_end|>` of the whole text, system and questions included, and the header
`assistant` in front of each answer, which the prompt already holds at inference.
Stage 1 ("plain") is marked alike. The strings are the same.
Source: the published understanding code; LLaVA-1.5, arXiv:2310.03744.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

IMAGE = "<image>"  # stands where a picture goes
IGNORED = -100  # label of what is not learned


@dataclass(frozen=True)
class Template:
    """The strings around the turns of a conversation."""

    system: str | None  # words of the system turn; None has no such turn
    system_frame: tuple[str, str]
    question_frame: tuple[str, str]
    header: str  # in front of an answer
    lead: str  # between header and answer, said by the model
    end: str  # behind an answer, said by the model
    after: str  # behind that, not said by it
    cue: str  # where the next answer is to come


def _dialogue(asker: str) -> Template:
    return Template(
        system=f"A chat between a curious {asker} and an artificial intelligence "
        "assistant. The assistant gives helpful, detailed, and polite answers to the "
        f"{asker}'s questions.",
        system_frame=("", " "),
        question_frame=("USER: ", " "),
        header="ASSISTANT:",
        lead=" ",
        end="</s>",
        after="",
        cue="ASSISTANT:",
    )


TEMPLATES = {
    "qwen_2_5": Template(
        system="You are a helpful assistant.",
        system_frame=("<|im_start|>system\n", "<|im_end|>\n"),
        question_frame=("<|im_start|>user\n", "<|im_end|>\n"),
        header="<|im_start|>assistant\n",
        lead="",
        end="<|im_end|>",
        after="\n",
        cue="<|im_start|>assistant\n",
    ),
    "vicuna_v1": _dialogue("user"),
    "llava_v1": _dialogue("human"),
    "brief": Template(  # ours, for models so small that every position counts
        system=None,
        system_frame=("", "\n"),
        question_frame=("", "\n"),
        header="",
        lead="",
        end="<|im_end|>",
        after="",
        cue="",
    ),
    "plain": Template(  # a picture and its caption; the cue is as recorded
        system=None,
        system_frame=("", ""),
        question_frame=("", ""),
        header="",
        lead="",
        end="\n",
        after="",
        cue="\n",
    ),
}

Message = Mapping[str, Any]
Piece = tuple[str, bool]  # text, and whether it is learned


def template(name: str) -> Template:
    """Return a template by its name.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in TEMPLATES:
        raise ValueError(f"template must be one of {list(TEMPLATES)}, got {name!r}")
    return TEMPLATES[name]


def with_pictures(question: str, pictures: int) -> str:
    """Return the question behind one mark and newline for each picture.

    A question that holds `<image>` itself, as often as there are pictures, says where
    they go.

    Raises:
        ValueError: It holds another number of marks.
    """
    marks = question.count(IMAGE)
    if marks in (0, pictures):
        return question if marks else f"{IMAGE}\n" * pictures + question
    raise ValueError(
        f"question must hold {IMAGE} not at all or once for each of {pictures} "
        f"pictures, got {marks} of them"
    )


def content(message: Message) -> str:
    """Return what a turn says: its text, or its parts, pictures as `<image>` lines.

    Args:
        message: `content` is a str, or a list of `{"type": "image"}` and
            `{"type": "text", "text": …}`.
    """
    said = message["content"]
    if isinstance(said, str):
        return said
    words = []
    for part in said:
        if part["type"] not in ("image", "text"):
            raise ValueError(
                f"content: a part must be an image or a text, got {part['type']!r}"
            )
        words.append(f"{IMAGE}\n" if part["type"] == "image" else part["text"])
    return "".join(words)


def render(
    frame: Template, messages: Sequence[Message], *, answer_next: bool = True
) -> list[Piece]:
    """Write a conversation down.

    Args:
        frame: One of `TEMPLATES`.
        messages: Turns `{"role": …, "content": …}`, see `content`; roles are
            "system" (first, if at all; the template's own words when there is none),
            "user" and "assistant".
        answer_next: End with the cue for the next answer.

    Returns:
        Pieces of text, in order, each with whether the model learns to say it.

    Raises:
        ValueError: There is no turn, an unknown role, or a late system turn.
    """
    turns = list(messages)
    system = frame.system
    if turns and turns[0]["role"] == "system":
        system = content(turns.pop(0))
    if not turns:
        raise ValueError("messages: at least one question is needed, got none")
    pieces: list[Piece] = []
    if system is not None:
        pieces.append((system.join(frame.system_frame), False))
    for turn in turns:
        if turn["role"] == "user":
            pieces.append((content(turn).join(frame.question_frame), False))
        elif turn["role"] == "assistant":
            pieces.append((frame.header, False))
            pieces.append((f"{frame.lead}{content(turn)}{frame.end}", True))
            pieces.append((frame.after, False))
        else:
            raise ValueError(
                "messages: a role must be user or assistant, or system in the first "
                f"turn, got {turn['role']!r}"
            )
    if answer_next:
        pieces.append((frame.cue, False))
    return [piece for piece in pieces if piece[0]]


_JINJA = """\
{%- macro said(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}{{ IMAGE }}
{%- elif part['type'] == 'text' -%}{{ part['text'] }}
{%- else -%}
{{ raise_exception('a part must be an image or a text, got ' ~ part['type']) }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set talk = namespace(turns=messages) -%}
{%- if messages and messages[0]['role'] == 'system' -%}
{{ SYSTEM_BEFORE ~ said(messages[0]['content']) ~ SYSTEM_BEHIND }}
{%- set talk.turns = messages[1:] -%}
{%- else -%}{{ SYSTEM }}
{%- endif -%}
{%- if not talk.turns -%}
{{ raise_exception('at least one question is needed, got none') }}
{%- endif -%}
{%- for turn in talk.turns -%}
{%- if turn['role'] == 'user' -%}
{{ QUESTION_BEFORE ~ said(turn['content']) ~ QUESTION_BEHIND }}
{%- elif turn['role'] == 'assistant' -%}
{{ HEADER ~ said(turn['content']) ~ END }}
{%- else -%}
{{ raise_exception('a role must be user or assistant, got ' ~ turn['role']) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ CUE }}{%- endif -%}
"""


def jinja(name: str) -> str:
    """Return a template in Jinja, which writes what `render` and `text` write.

    For `apply_chat_template` of transformers and for programs that read such files.

    Raises:
        ValueError: There is none of that name.
    """
    frame = template(name)
    system = "" if frame.system is None else frame.system.join(frame.system_frame)
    words = {
        "IMAGE": f"{IMAGE}\n",
        "SYSTEM_BEFORE": frame.system_frame[0],
        "SYSTEM_BEHIND": frame.system_frame[1],
        "SYSTEM": system,
        "QUESTION_BEFORE": frame.question_frame[0],
        "QUESTION_BEHIND": frame.question_frame[1],
        "HEADER": frame.header + frame.lead,
        "END": frame.end + frame.after,
        "CUE": frame.cue,
    }
    sets = [
        f"{{%- set {key} = {json.dumps(value)} -%}}\n" for key, value in words.items()
    ]
    return "".join(sets) + _JINJA


def text(pieces: Sequence[Piece]) -> str:
    """Return pieces as one string."""
    return "".join(words for words, _ in pieces)


def tokenized(
    pieces: Sequence[Piece], tokenizer: Any, image_tokens: int
) -> tuple[list[int], list[int]]:
    """Return ids and labels of a rendered conversation.

    The text is tokenized whole, as a prompt is, so that what is learned continues
    exactly what will be read. Every `<image>` becomes `image_tokens` times its id.

    Args:
        pieces: What `render` returned.
        tokenizer: A text tokenizer of transformers that tells offsets and has
            `<image>` as a token.
        image_tokens: Positions of one picture.

    Returns:
        input_ids and labels of one length; a label is the id where the model learns
        to say it, and −100 elsewhere.

    Raises:
        ValueError: The tokenizer cannot tell which characters a token came from.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            "tokenized: the text tokenizer must tell offsets (a fast one of "
            f"transformers), got {type(tokenizer).__name__}"
        )
    learned: list[bool] = []  # of each character
    for words, said in pieces:
        learned.extend([said] * len(words))
    made = tokenizer(text(pieces), return_offsets_mapping=True)
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    ids: list[int] = []
    labels: list[int] = []
    pairs = zip(made["input_ids"], made["offset_mapping"], strict=True)
    for token, (start, stop) in pairs:
        if token == image:
            ids.extend([image] * image_tokens)
            labels.extend([IGNORED] * image_tokens)
        else:
            ids.append(token)
            labels.append(token if any(learned[start:stop]) else IGNORED)
    return ids, labels
