"""Conversations about pictures, in LLaVA's format.

A file holds one record per line (JSONL) or one list of them (JSON):
  {"id": "7", "image": "coco/7.jpg", "conversations": [
    {"from": "human", "value": "<image>\\nWhat is it?"},
    {"from": "gpt", "value": "A cat."}]}
`image` is relative to a folder of pictures; a list names several, none talks without.
Records that are no such thing are left out and told with their line.
Source: LLaVA-1.5, arXiv:2310.03744, whose code puts the one picture in front.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tokenflow._pictures import open_image
from tokenflow.data._strings import Strings
from tokenflow.data.errors import BrokenPicture

IMAGE = "<image>"
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
Turn = dict[str, str]


class Llava:
    """Conversations about pictures from a file.

    Item i is {"turns": [{"role", "content"}, …], "images": [RGB picture, …]}; `<image>`
    stands in the turns as often as there are pictures.

    Args:
        path: A .json or .jsonl file.
        pictures: Folder that pictures are relative to; that of the file when None.

    Attributes:
        broken: Why records were left out, with file and line.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It is no JSON, or no record in it is whole.
    """

    def __init__(self, path: str | Path, pictures: str | Path | None = None):
        self.path = Path(os.path.abspath(Path(path).expanduser()))
        if not self.path.is_file():
            raise FileNotFoundError(f"llava: {path} must be a file, it is not there")
        folder = self.path.parent if pictures is None else Path(pictures).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"llava: {folder} must be a folder of pictures")
        self.pictures = Path(os.path.abspath(folder))
        self.broken: list[str] = []
        lengths, counts = [], []

        def kept() -> Iterator[str]:
            for line, record in _records(self.path):
                try:
                    turns, images = dialogue(record)
                except ValueError as error:
                    self.broken.append(f"{self.path}:{line}: {error}")
                    continue
                lengths.append(sum(len(turn["content"]) for turn in turns))
                counts.append(len(images))
                yield json.dumps([turns, images], ensure_ascii=False)

        self._records = Strings(kept())
        self.characters = np.array(lengths, np.int64)
        self.images = np.array(counts, np.int64)
        if not len(self):
            first = f"; the first of {len(self.broken)} broken ones: {self.broken[0]}"
            raise ValueError(
                f"llava: {path} must hold conversations, it has none"
                f"{first if self.broken else ''}"
            )

    def __len__(self) -> int:
        """Return how many conversations there are."""
        return len(self._records)

    def size(self, index: int) -> tuple[int, int]:
        """Return how many characters and pictures conversation `index` has."""
        return int(self.characters[index]), int(self.images[index])

    def turns(self, index: int) -> list[Turn]:
        """Return what is said in one conversation, without its pictures."""
        return json.loads(self._records[index])[0]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one conversation with its pictures.

        Raises:
            BrokenPicture: One cannot be read.
        """
        turns, names = json.loads(self._records[index])
        try:
            images = [open_image(self.pictures / name) for name in names]
        except (OSError, ValueError) as error:
            words = str(error).removeprefix("open_image: ")
            raise BrokenPicture(f"llava: {words}") from None
        return {"turns": turns, "images": images}


def dialogue(record: Any) -> tuple[list[Turn], list[str]]:
    """Return the turns and the pictures' names of a record.

    Raises:
        ValueError: It is no conversation, questions and answers do not alternate, or
            `<image>` does not stand there once for each picture.
    """
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError(f"a record must be an object, got {type(record).__name__}")
    images = record.get("image") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(n, str) for n in images):
        raise ValueError(f"image must be a path or a list of paths, got {images!r}")
    said = record.get("conversations")
    if not isinstance(said, list):
        raise ValueError("conversations must be a list of turns")
    turns = [_turn(turn) for turn in said]
    asked = [turn for turn in turns if turn["role"] != "system"]
    roles = [turn["role"] for turn in asked]
    late = any(turn["role"] == "system" for turn in turns[1:])
    if late or not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(
            "conversations must be questions and answers in turn, system words first "
            f"if at all, got {[turn['role'] for turn in turns]}"
        )
    marks = [turn["content"].count(IMAGE) for turn in asked]
    if any(marks[1::2]):
        raise ValueError(f"an answer must not hold {IMAGE}")
    if len(images) == 1 and sum(marks) <= 1:  # in front, wherever it stood
        where = asked[marks.index(1) if any(marks) else 0]
        words = where["content"].replace(IMAGE, "").strip()
        where["content"] = f"{IMAGE}\n{words}".strip()
    elif sum(marks) != len(images):
        raise ValueError(
            f"conversations must hold {IMAGE} once for each of {len(images)} pictures, "
            f"got {sum(marks)}"
        )
    return turns, images


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, dict) or turn.get("from") not in ROLES:
        raise ValueError(f'a turn must be "from" one of {sorted(ROLES)}, got {turn!r}')
    words = turn.get("value")
    if not isinstance(words, str):
        raise ValueError(f'the "value" of a turn must be text, got {words!r}')
    try:
        words.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"a turn must be text that UTF-8 can hold ({error})") from None
    return {"role": ROLES[turn["from"]], "content": words}


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line, record) of a file; a ValueError in place of what is no JSON.

    Raises:
        ValueError: A list of records is no JSON: what follows cannot be told apart.
    """
    whole = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if whole.lstrip()[:1] == b"[":
        yield from _listed(path, whole)
        return
    for line, found in enumerate(whole.split(b"\n"), start=1):
        if not found.strip():
            continue
        try:
            yield line, json.loads(found.decode("utf-8"))
        except ValueError as error:  # of JSON and of UTF-8
            yield line, ValueError(f"a line must be JSON in UTF-8 ({error})")


def _listed(path: Path, whole: bytes) -> Iterator[tuple[int, Any]]:
    try:
        text = whole.decode("utf-8")
    except UnicodeDecodeError as error:
        line = whole.count(b"\n", 0, error.start) + 1
        raise ValueError(f"llava: {path}:{line} must be UTF-8 ({error})") from None
    decoder, place = json.JSONDecoder(), text.index("[") + 1
    line, counted = 1, 0
    while True:
        place = _blank(text, place)
        if text[place : place + 1] == "]":
            return
        line, counted = line + text.count("\n", counted, place), place
        try:
            record, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise ValueError(f"llava: {path} must be JSON ({error})") from None
        yield line, record
        place = _blank(text, place)
        mark = text[place : place + 1]
        if mark == ",":
            place += 1
        elif mark != "]":
            line += text.count("\n", counted, place)
            raise ValueError(
                f"llava: {path}:{line} must have , or ] behind a record, got {mark!r}"
            )


def _blank(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\t", "\r", "\n"):
        place += 1
    return place
