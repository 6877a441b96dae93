"""Many strings in little memory: one run of bytes and where each string ends.

A list of ten million names is more than a gigabyte of Python objects, and worker
processes would copy them all by merely counting references.
"""

from collections.abc import Iterable, Sequence

import numpy as np


class Strings(Sequence):
    """A sequence of strings; any string survives, lone surrogates too."""

    def __init__(self, strings: Iterable[str]):
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        self._ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        """Return one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, got {index}")
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        encoded = self._bytes[start : self._ends[index]]
        return encoded.decode("utf-8", "surrogatepass")
