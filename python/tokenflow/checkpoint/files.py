"""Folders of models: found by name, written whole, and what differs in them told.

A folder is written beside its place and moved there at the end.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from os import PathLike, fspath, replace, sep
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tokenflow._transformers import quiet

SHIPPED = Path(__file__).resolve().parents[1] / "weights"  # models inside the package
# of `from_pretrained`: how a hub is asked
HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision")
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


def shipped(name: str | PathLike, kind: str = "") -> Path | None:
    """Return the folder of a model inside the package, None where there is none.

    Args:
        name: What a user calls the model.
        kind: What it is for, such as "understanding": "mini" is then in the folder
            "mini-understanding".
    """
    plain = isinstance(name, str) and "/" not in name and sep not in name
    folder = SHIPPED / (f"{name}-{kind}" if kind else name)
    if plain and (folder / "config.json").is_file():
        return folder
    return None


def local_folder(name: str | PathLike, kind: str = "") -> Path | None:
    """Return the folder of a shipped name or a path, None for the id of a hub.

    Args:
        name, kind: As in `shipped`.

    Raises:
        OSError: It is none of the three.
    """
    if (folder := shipped(name, kind)) is not None:
        return folder
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name, str) and name.count("/") == 1 and name[0] not in "./~":
        return None
    end = f"-{kind}" if kind else ""
    names = [path.parent.name for path in sorted(SHIPPED.glob(f"*{end}/config.json"))]
    raise OSError(
        f"from_pretrained: there must be a model; {fspath(name)!r} is no folder, "
        f"none of those shipped{f' for {kind}' if kind else ''} "
        f"({[name.removesuffix(end) for name in names]}) and no id of a hub "
        "(owner/name)"
    )


def lasting(name: str | PathLike) -> str | None:
    """Return a shipped name or a hub id as it is, None for a folder: that may move.

    Raises:
        OSError: It is none of the three.
    """
    return None if local_folder(name) == Path(name) else fspath(name)


def load_whole(
    load: Callable[..., Any],
    folder: Path | None,
    name: str | PathLike,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Load a model with transformers' `from_pretrained`, all of it or not at all.

    Args:
        load: The method.
        folder: What `local_folder` returned for `name`.
        name: What the user called it.
        args, kwargs: What the method takes besides.

    Returns:
        What `load` returns.

    Raises:
        ValueError: The weights are damaged, or not those of the class and its config;
            the first differing names are in the message.
    """
    want_report = kwargs.pop("output_loading_info", False)
    kwargs.update(output_loading_info=True, ignore_mismatched_sizes=True)
    with nullcontext() if folder is None else quiet():  # a download shows its bar
        try:
            model, report = load(folder or name, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(
                f"{folder or name}: the weights must be whole safetensors; they "
                f"are truncated or damaged ({error})"
            ) from None
    check_complete(name, report["missing_keys"], report["unexpected_keys"])
    check_shapes(name, report["mismatched_keys"])
    return (model, report) if want_report else model


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
