"""One way to name where pictures come from: a folder, tars, Parquet files, drawings."""

import os
from pathlib import Path
from typing import Any

from tokenflow._files import PICTURES
from tokenflow.data.folder import Folder, walk
from tokenflow.data.paths import is_pattern
from tokenflow.data.stream import Source

DRAWN = ("glyphs", "scenes")


def open_source(spec: str | Path, **options: Any) -> Source:
    """Return the source that a path, a pattern or a name means.

    "glyphs" and "scenes" are drawn by our own code. A folder is read as `Folder` if
    any picture file is below it, else its tars as `Tars`, else its Parquet files as
    `Parquet`. A `.tar` or `.parquet` file, or a pattern that ends so, is read as such.

    Args:
        spec: One of these. A folder that has the name of a drawing is `./glyphs`.
        options: Arguments of the source; `split` ("train"), `size`, `seed`, `length` of
            a drawing.

    Raises:
        FileNotFoundError: Nothing is there, or it holds no pictures.
        TypeError: The source takes no such option.
        ValueError: The spec is none of these.
    """
    if spec in DRAWN:
        return _drawn(str(spec), **options)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _within(path, **options)
    suffix = path.suffix.lower()
    if suffix == ".tar":
        from tokenflow.data.tars import Tars

        return Tars(spec, **options)
    if suffix == ".parquet":
        from tokenflow.data.parquet import Parquet

        return Parquet(spec, **options)
    if not path.exists() and not is_pattern(os.fspath(spec)):
        raise FileNotFoundError(
            f"data: {spec} is not there; it must be a folder, a .tar or .parquet file, "
            f"a pattern of these, or one of {list(DRAWN)}"
        )
    raise ValueError(
        "data: must be a folder, a .tar or .parquet file or a pattern that ends so, or "
        f"one of {list(DRAWN)}, got {spec}"
    )


def _drawn(name: str, *, split: str = "train", **options: Any) -> Source:
    if name == "glyphs":
        from tokenflow.data.glyphs import GlyphPictures

        return GlyphPictures(split, **options)
    from tokenflow.data.scenes import Scenes

    return Scenes(split, **options)


def _within(folder: Path, **options: Any) -> Source:
    """Return the source for what lies in a folder."""
    found: dict[str, list[Path]] = {".tar": [], ".parquet": []}
    for name in walk(folder):
        suffix = os.path.splitext(name)[1].lower()
        if suffix in PICTURES:
            return Folder(folder, **options)
        if suffix in found:
            found[suffix].append(folder / name)
    if found[".tar"]:
        from tokenflow.data.tars import Tars

        return Tars(sorted(found[".tar"]), **options)
    if found[".parquet"]:
        from tokenflow.data.parquet import Parquet

        return Parquet(sorted(found[".parquet"]), **options)
    raise FileNotFoundError(
        f"data: {folder} must hold pictures ({' '.join(PICTURES)}), .tar or .parquet "
        "files, it has none"
    )
