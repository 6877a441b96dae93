"""Which files a pattern means: `shard-{000..127}.tar`, `*.tar`, lists of these.

Braces hold a range of whole numbers, written as wide as its ends are, or
alternatives: `{train,val}-{00..15}.tar`. What is left may hold `*`, `?` and `[…]`.
A file whose name is the pattern itself is meant literally.
"""

import glob
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)$")
Patterns = str | Path | Iterable[str | Path]


def files_of(patterns: Patterns, what: str) -> list[Path]:
    """Return the files that a pattern, or several, mean, in order and absolute.

    Args:
        patterns: One pattern, or several, which are taken one after the other.
        what: Who asks, for the errors.

    Raises:
        FileNotFoundError: A pattern means no file, or a file is not there.
        ValueError: A range in braces is empty, or there is no pattern.
    """
    if isinstance(patterns, str | Path):
        patterns = [patterns]
    found = [path for pattern in patterns for path in _files(os.fspath(pattern), what)]
    if not found:
        raise ValueError(f"{what}: at least one file must be named, got none")
    gone = [path for path in found if not os.path.isfile(path)]
    if gone:
        more = f" ({len(gone)} such in all)" if len(gone) > 1 else ""
        raise FileNotFoundError(f"{what}: {gone[0]} must be a file, it is not{more}")
    return [Path(os.path.abspath(path)) for path in found]


def expand_braces(pattern: str) -> list[str]:
    """Return every string that a pattern with braces means, in order.

    Raises:
        ValueError: A range ends before it begins.
    """
    parts = _BRACES.split(pattern)  # text, inside of braces, text, …
    choices = [
        _choices(part, pattern) if place % 2 else [part]
        for place, part in enumerate(parts)
    ]
    return ["".join(words) for words in itertools.product(*choices)]


def is_pattern(text: str) -> bool:
    """Say whether a text means other files than the one of its name."""
    return bool(_BRACES.search(text)) or glob.has_magic(text)


def _choices(inside: str, pattern: str) -> list[str]:
    ends = _RANGE.match(inside)
    if not ends:
        return inside.split(",")
    first, last = ends.groups()
    if int(last) < int(first):
        raise ValueError(f"{pattern}: a range must rise, got {{{inside}}}")
    wide = len(first) if first.startswith("0") else 0
    return [f"{number:0{wide}}" for number in range(int(first), int(last) + 1)]


def _files(pattern: str, what: str) -> list[str]:
    pattern = os.path.expanduser(pattern)
    if os.path.exists(pattern):
        return [pattern]
    found = []
    for name in expand_braces(pattern):
        matches = (
            sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
        )
        if not matches:
            raise FileNotFoundError(f"{what}: no file matches {name}")
        found += matches
    return found
