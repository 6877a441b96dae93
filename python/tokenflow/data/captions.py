"""Tables of captions: which text belongs to which picture file.

captions.json     {"dog.png": "a dog", …}, or a list of rows
metadata.jsonl    one row per line: {"file_name": "dog.png", "text": "a dog"}
metadata.csv      the same as columns, named in the first line
A row names its picture as `file_name` (or `file`, `image`), relative to the folder,
and its words as `caption` or `text`.
Source: the names are those of picture folders of Hugging Face datasets.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TABLES = ("captions.json", "metadata.jsonl", "metadata.csv")
FILE_KEYS = ("file_name", "file", "image")
CAPTION_KEYS = ("caption", "text")


def find_table(folder: Path) -> Path | None:
    """Return the caption table of a folder, None where there is none.

    Raises:
        ValueError: There are several.
    """
    found = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(
            f"captions: {folder} must hold one table, got "
            f"{[path.name for path in found]}; name one with captions="
        )
    return found[0] if found else None


def read_table(path: Path) -> dict[str, str]:
    """Return {picture file: caption} of a .json, .jsonl or .csv file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is none of these, or a row lacks file or caption.
    """
    if not path.is_file():
        raise FileNotFoundError(f"captions: {path} is no file")
    if path.suffix.lower() not in (".json", ".jsonl", ".csv"):
        raise ValueError(f"captions: must be a .json, .jsonl or .csv file, got {path}")
    try:
        return dict(_rows(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"captions: {path} must be UTF-8 ({error})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"captions: {path} must be valid JSON ({error})") from None


def caption_of(row: Any) -> str | None:
    """Return the words of a row or JSON object, None where it holds none."""
    if isinstance(row, dict):
        for name in CAPTION_KEYS:
            if isinstance(row.get(name), str):
                return row[name].strip()
    return None


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".csv":
            rows = csv.DictReader(file)
        elif path.suffix.lower() == ".jsonl":
            rows = (json.loads(line) for line in file if line.strip())
        else:
            rows = json.load(file)
            if isinstance(rows, dict):
                rows = [
                    {"file_name": name, "caption": text} for name, text in rows.items()
                ]
        for number, row in enumerate(rows, 1):
            yield _read_row(row, f"row {number} of {path}")


def _read_row(row: Any, where: str) -> tuple[str, str]:
    words = caption_of(row)
    names = [row[k] for k in FILE_KEYS if row.get(k)] if isinstance(row, dict) else []
    if words is None or not names:
        raise ValueError(
            f"captions: a row must have file_name and caption (or text), {where} is "
            f"{str(row)[:80]}"
        )
    return str(names[0]).removeprefix("./"), words
