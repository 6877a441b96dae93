"""Folders of models: found by name, written whole, and what differs in them told.

A folder is written beside its place and moved there at the end.
"""

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike, fspath, replace, sep
from pathlib import Path

SHIPPED = Path(__file__).resolve().parents[1] / "weights"  # models inside the package
SHOWN = 5  # differing names in a message
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def check_complete(
    source: str | PathLike, missing: Iterable[str], unexpected: Iterable[str]
) -> None:
    """Raise ValueError, with the first names, unless nothing is missing or too much."""
    missing, unexpected = sorted(missing), sorted(unexpected)
    if not missing and not unexpected:
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} weights are missing: {missing[:SHOWN]}")
    if unexpected:
        parts.append(f"{len(unexpected)} are not this model's: {unexpected[:SHOWN]}")
    raise ValueError(f"{fspath(source)}: {'; '.join(parts)}")


def check_shapes(
    source: str | PathLike, differing: Iterable[tuple[str, Sequence, Sequence]]
) -> None:
    """Raise ValueError with the first of (name, shape found, shape expected)."""
    wrong = [
        f"{name} is {list(found)} where {list(expected)} is expected"
        for name, found, expected in sorted(differing)
    ]
    if wrong:
        raise ValueError(
            f"{fspath(source)}: {len(wrong)} weights have another shape than this "
            f"model's: {'; '.join(wrong[:SHOWN])}"
        )


def shipped(name: str | PathLike) -> Path | None:
    """Return the folder of a model inside the package, None where there is none."""
    plain = isinstance(name, str) and "/" not in name and sep not in name
    if plain and (SHIPPED / name / "config.json").is_file():
        return SHIPPED / name
    return None


def local_folder(name: str | PathLike) -> Path | None:
    """Return the folder of a shipped name or a path, None for the id of a hub.

    Raises:
        OSError: It is none of the three.
    """
    if (folder := shipped(name)) is not None:
        return folder
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name, str) and name.count("/") == 1 and name[0] not in "./~":
        return None
    names = [path.parent.name for path in sorted(SHIPPED.glob("*/config.json"))]
    raise OSError(
        f"from_pretrained: there must be a model; {fspath(name)!r} is no folder, "
        f"none of those shipped ({names}) and no id of a hub (owner/name)"
    )


@contextmanager
def replacing(folder: str | PathLike) -> Iterator[Path]:
    """Yield a new folder whose files take their place in `folder` at the end.

    When the body fails, `folder` is as it was before and nothing else is left. Other
    files that are in `folder` already stay there, but for weights that the new ones
    replace: one whole file beside a newer index of shards would be read first.

    Raises:
        NotADirectoryError: `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"save: {folder} must be a folder, it is a file")
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield made
        made.chmod(0o755)
        if folder.exists():
            files = sorted(made.iterdir())
            for file in files:
                replace(file, folder / file.name)
            _remove_older_weights(folder, {file.name for file in files})
        else:
            replace(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _remove_older_weights(folder: Path, written: set[str]) -> None:
    if any(_WEIGHTS.fullmatch(name) for name in written):
        for file in folder.iterdir():
            if _WEIGHTS.fullmatch(file.name) and file.name not in written:
                file.unlink()
