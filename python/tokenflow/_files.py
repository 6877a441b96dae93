"""Files: which are pictures, and how one appears whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PICTURES += (".ppm", ".pgm", ".pbm", ".avif")  # suffixes that count within a folder


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; at the end the file takes its place.

    When the body fails, `path` is as it was before and nothing else is left. Folders
    on the way are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
