"""Which files go in, and where each result goes.

A folder stands for every matching file in it, at any depth, and its results keep that
shape; a file named by itself gives a result of its own name. All names are settled
before any work begins, so two inputs never write one file and nothing that exists is
replaced unasked.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from os.path import abspath
from pathlib import Path
from typing import NamedTuple

import typer


class Job(NamedTuple):
    """One input and the file that its result becomes."""

    source: Path
    target: Path

    def names(self) -> dict[str, str]:
        """Return both as a report has them."""
        return {"input": str(self.source), "output": str(self.target)}


def plan(
    sources: Sequence[Path],
    out: Path,
    *,
    suffixes: Sequence[str],
    suffix: str,
    overwrite: bool,
) -> list[Job]:
    """Return what to do, folders unrolled, in the order given, sorted within a folder.

    Args:
        sources: Files (any name) and folders.
        out: Folder for the results; what is in it is no input.
        suffixes: Of the files that count within a folder, in small letters.
        suffix: Of the results. Inputs that differ only in theirs keep it in the name
            (a.png and a.jpg become a.png.tok and a.jpg.tok).
        overwrite: Results that exist may be replaced.

    Raises:
        typer.BadParameter: `out` is no folder, or one whose inputs the results would
            mix with; a folder holds no input; a result would replace an input or,
            unasked, another file.
    """
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"--out must be a folder, {out} is a file")
    found: dict[str, tuple[Path, Path]] = {}  # by place, so nothing is done twice
    for source in sources:
        if suffix in suffixes and out.resolve() == source.resolve():
            raise typer.BadParameter(
                f"--out must be another folder than {source}, or the results become "
                "inputs the next time"
            )
        for path, relative in _unroll(source, out, suffixes):
            found.setdefault(abspath(path), (path, relative))
    jobs = [
        Job(path, out / target)
        for (path, _), target in zip(
            found.values(),
            _names([relative for _, relative in found.values()], suffix),
            strict=True,
        )
    ]
    _check_targets(jobs, overwrite)
    return jobs


def _unroll(
    source: Path, out: Path, suffixes: Sequence[str]
) -> Iterable[tuple[Path, Path]]:
    """Yield each input file and its name relative to what was asked for."""
    if not source.is_dir():
        yield source, Path(source.name)
        return
    inside = out.resolve() if out.resolve() != source.resolve() else None
    files = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in suffixes
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
        and (inside is None or inside not in path.resolve().parents)
    ]
    if not files:
        raise typer.BadParameter(f"{source} holds no file ending in {_or(suffixes)}")
    for path in files:
        yield path, path.relative_to(source)


def _or(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _names(relatives: Sequence[Path], suffix: str) -> list[Path]:
    """Return one name per result, all different, also where letter case is ignored."""
    short = [path.with_suffix(suffix) for path in relatives]
    wanted = Counter(_key(path) for path in short)
    taken: set[str] = set()
    names = []
    for path, name in zip(relatives, short, strict=True):
        if wanted[_key(name)] > 1:
            name = path.with_name(path.name + suffix)
        plain, number = name, 1
        while _key(name) in taken or (number > 1 and wanted[_key(name)]):
            number += 1
            name = plain.with_stem(f"{plain.stem}-{number}")
        taken.add(_key(name))
        names.append(name)
    return names


def _key(path: Path) -> str:
    return path.as_posix().casefold()


def _check_targets(jobs: Sequence[Job], overwrite: bool) -> None:
    inputs = {job.source.resolve() for job in jobs}
    there = [job.target for job in jobs if job.target.exists()]
    for target in there:
        if target.resolve() in inputs:
            raise typer.BadParameter(
                f"the result {target} would replace an input; choose another --out"
            )
    if there and not overwrite:
        raise typer.BadParameter(
            f"{len(there)} of {len(jobs)} results are there already, first {there[0]}; "
            "choose another --out, or --overwrite to replace them"
        )
