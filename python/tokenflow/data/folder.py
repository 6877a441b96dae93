"""Pictures in a folder, with captions where they are given.

Every picture file below the folder counts, by its suffix (`PICTURES`), in the order
of the names; names that begin with a dot do not. Captions are a table in the folder
(see `captions`), or text files beside the pictures: dog.png and dog.txt. Where every
picture lies in a sub-folder, the first one's name is its label, as in the folders of
ImageNet.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenflow._files import PICTURES
from tokenflow._pictures import open_image
from tokenflow.data._strings import Strings
from tokenflow.data.captions import find_table, read_table
from tokenflow.data.errors import BrokenPicture


class Folder:
    """The picture files below a folder, sorted by their names.

    Item i is {"image": RGB picture}, "caption" where the folder has captions ("" for a
    picture without one) and "label" where every picture lies in a sub-folder. Links
    are followed; a folder that is reached twice counts once.

    Args:
        path: The folder.
        captions: A table (.json, .jsonl, .csv) of captions; None takes what the
            folder holds, False leaves captions out.

    Raises:
        FileNotFoundError: No such folder, or no picture in it.
        OSError: A folder below cannot be read.
        ValueError: The table is not one, or names none of the pictures.
    """

    def __init__(self, path: str | Path, *, captions: str | Path | bool | None = None):
        self.path = Path(os.path.abspath(Path(path).expanduser()))
        if not self.path.is_dir():
            raise FileNotFoundError(f"folder: {path} must be a folder, it is not there")
        files = sorted(walk(self.path))
        names = [name for name in files if _suffix(name) in self.suffixes]
        if not names:
            raise FileNotFoundError(
                f"folder: {path} must hold {self.what} ({' '.join(self.suffixes)}), "
                "it has none"
            )
        self.names = Strings(names)
        self.labelled = all("/" in name for name in names)
        self._table: Strings | None = None  # captions, as many as names
        self._beside = False  # captions are files beside the pictures
        if captions is False:
            return
        if isinstance(captions, str | Path):
            table = Path(captions).expanduser()
        else:
            table = find_table(self.path)
        if table is not None:
            self._table = self._captions(read_table(table), table)
        else:
            texts = {name[:-4] for name in files if name.endswith(".txt")}
            self._beside = any(stem(name) in texts for name in names)

    suffixes: tuple[str, ...] = PICTURES  # of the files that count
    what = "pictures"

    def read(self, path: Path) -> dict[str, Any]:
        """Return what a file holds, as a sample has it."""
        return {"image": open_image(path)}

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one picture, and what is known of it.

        Raises:
            BrokenPicture: It or its caption cannot be read.
        """
        name = self.names[index]
        path = self.path / name
        try:
            sample = self.read(path)
            if self._beside:
                sample["caption"] = _read_text(self.path / (stem(name) + ".txt"))
        except (OSError, ValueError) as error:
            words = str(error).removeprefix("open_image: ")
            raise BrokenPicture(f"folder: {words}") from None
        if self._table is not None:
            sample["caption"] = self._table[index]
        if self.labelled:
            sample["label"] = name.partition("/")[0]
        return sample

    def _captions(self, table: dict[str, str], path: Path) -> Strings:
        named = [self.row_of(name) for name in self.names]
        rows = {self.row_of(name): text for name, text in table.items()}
        if rows.keys().isdisjoint(named):
            example = next(iter(table), None)
            raise ValueError(
                f"captions: {path} must name {self.what} as {self.names[0]!r}, none of "
                f"its {len(table)} names is one; the first is {example!r}"
            )
        return Strings(rows.get(name, "") for name in named)

    @staticmethod
    def row_of(name: str) -> str:
        """Return by what part of its name a table of captions knows a file."""
        return name


def walk(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, relative to it; hidden ones left out.

    Raises:
        OSError: A folder below it cannot be read.
    """
    seen = set()
    for here, folders, files in os.walk(folder, onerror=_fail, followlinks=True):
        facts = os.stat(here)
        if (facts.st_dev, facts.st_ino) in seen:
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(here, folder)
        for name in files:
            if not name.startswith("."):
                yield name if below == "." else f"{below}/{name}"


def _fail(error: OSError) -> None:
    raise error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def stem(name: str) -> str:
    """Return a file's name without its suffix."""
    return os.path.splitext(name)[0]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text ({error})") from None
