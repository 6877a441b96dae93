"""Pictures in tar files, as webdataset writes them, read at random.

A sample is the members of one tar that share a key, the name up to the first dot of
its last part: shards/cat.7.jpg has the key shards/cat and the suffix 7.jpg. Its
picture is the first member whose suffix is one of a picture, its caption a `.txt`, or
the "caption" or "text" of a `.json`. Members whose names begin with a dot, and links,
do not count.

Each tar is listed once, when the source is made; after that any sample is read by its
offset, from any process. Listing reads one header per member. `index` names a folder
that keeps the lists, so that the next run need not read them again.
Source: the layout is that of webdataset; the reading is ours.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from tokenflow._files import PICTURES, writing
from tokenflow._pictures import open_image
from tokenflow.data.captions import caption_of
from tokenflow.data.errors import BrokenPicture
from tokenflow.data.paths import Patterns, files_of

OPEN_FILES = 64  # kept open at a time
BLOCK = 512  # a tar is made of these
MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
DAMAGE = (tarfile.TarError, OSError, ValueError)  # what tarfile raises for it
# Where the picture and the caption of a sample are; a caption at -1 is none.
SAMPLE = np.dtype(
    [("at", "i8"), ("size", "i8"), ("text", "i8"), ("length", "i8"), ("json", "?")]
)


class Tars:
    """The pictures in tar files, tar after tar, in the order they were written.

    Item i is {"image": RGB picture}, and "caption" where any sample has one ("" for
    those without). A tar that is damaged or ends too early is used up to there;
    `problems` says so, and one warning.

    Args:
        paths: A tar, a pattern such as `shard-{000..127}.tar` or `*.tar`, or several.
        index: A folder that keeps the lists of members between runs; None lists anew.
        window: How many tars a `Stream` mixes at a time.

    Raises:
        FileNotFoundError: A pattern means no file, or a file is not there.
        ValueError: A tar is compressed, or there is no picture in all of them.
    """

    def __init__(
        self, paths: Patterns, *, index: str | Path | None = None, window: int = 8
    ):
        self.paths = files_of(paths, "tars")
        self.window = window
        self.problems: list[str] = []
        lists = []
        for path in self.paths:
            samples, problems = _listed(path, None if index is None else Path(index))
            lists.append(samples)
            self.problems += problems
        self._samples = np.concatenate(lists)
        self._ends = np.cumsum([len(samples) for samples in lists])
        if not len(self._samples):
            words = "; ".join(self.problems[:3]) or "they hold none"
            raise ValueError(
                f"tars: {self.paths[0]} and the rest of {len(self.paths)} files must "
                f"hold pictures: {words}"
            )
        if self.problems:
            warnings.warn(
                f"tars: {len(self.problems)} problems in {len(self.paths)} files, what "
                f"can be read is used: {'; '.join(self.problems[:3])}",
                stacklevel=2,
            )
        self.captioned = bool((self._samples["text"] >= 0).any())
        self._files: OrderedDict[int, io.FileIO] = OrderedDict()

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self._samples)

    def blocks(self) -> list[int]:
        """Return how many pictures each tar holds."""
        return np.diff(self._ends, prepend=0).tolist()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one picture, and its caption.

        Raises:
            BrokenPicture: It or its caption cannot be read.
            IndexError: There is no such sample.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"tars: index must be in [0, {len(self)}), got {index}")
        tar = int(np.searchsorted(self._ends, index, "right"))
        place = self._samples[index]
        try:
            stored = self._read(tar, int(place["at"]), int(place["size"]))
            sample: dict[str, Any] = {"image": open_image(io.BytesIO(stored))}
            if self.captioned:
                sample["caption"] = self._caption(tar, place)
        except (OSError, ValueError) as error:
            words = str(error).removeprefix("open_image: ")
            raise BrokenPicture(f"tars: {self._name(tar, place)}: {words}") from None
        return sample

    def _caption(self, tar: int, place: np.void) -> str:
        if place["text"] < 0:
            return ""
        stored = self._read(tar, int(place["text"]), int(place["length"]))
        if not place["json"]:
            return stored.decode("utf-8-sig").strip()
        return caption_of(json.loads(stored)) or ""

    def _read(self, tar: int, at: int, size: int) -> bytes:
        """Return bytes of a tar; the position of its file is neither used nor moved."""
        file = self._files.get(tar)
        if file is None:
            file = self._files[tar] = io.FileIO(self.paths[tar])
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(tar)
        stored = os.pread(file.fileno(), size, at)
        if len(stored) < size:
            raise OSError(f"the tar ends after {len(stored)} of {size} bytes")
        return stored

    def _name(self, tar: int, place: np.void) -> str:
        """Return what the header before a picture calls it, and of which tar it is."""
        try:
            header = self._read(tar, int(place["at"]) - BLOCK, BLOCK)
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except (OSError, tarfile.HeaderError):
            member = f"the member at byte {place['at']}"
        return f"{member} in {self.paths[tar]}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind."""
        return {**self.__dict__, "_files": OrderedDict()}


def list_tar(path: Path) -> tuple[np.ndarray, list[str]]:
    """Return where the samples of a tar are ([N] of `SAMPLE`), and what is wrong.

    Raises:
        ValueError: The tar is compressed.
    """
    found: dict[str, dict[str, Any]] = {}
    problems = []
    with path.open("rb") as file:
        start = file.read(8)
        for magic, name in PACKED.items():
            if start.startswith(magic):
                raise ValueError(
                    f"tars: {path} must be an uncompressed tar, it is packed with "
                    f"{name}; unpack it (pictures hardly shrink, and there are no "
                    "offsets in a packed tar)"
                )
        file.seek(0)
        try:
            _add_members(file, path.stat().st_size, found)
        except DAMAGE as error:
            problems.append(f"{path}: {error}")
    whole = {key: sample for key, sample in found.items() if "at" in sample}
    odd = [sample["odd"] for key, sample in found.items() if key not in whole]
    odd = [name for name in odd if name]
    if odd:
        problems.append(
            f"{path}: {len(odd)} pictures such as {odd[0]} have a second dot in their "
            "name and are not used"
        )
    samples = np.zeros(len(whole), SAMPLE)
    samples["text"] = -1
    for place, sample in zip(samples, whole.values(), strict=True):
        for name in SAMPLE.names:
            if name in sample:
                place[name] = sample[name]
    return samples, problems


def _add_members(file: io.BufferedReader, size: int, found: dict) -> None:
    """Add what counts of a tar to `found`: {key: where its parts are}."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # it would keep all of them
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(f"it ends within {member.name}")
            if member.isreg() and not member.issparse():
                _add(found, member)
        end = tar.offset
    file.seek(end)
    if any(file.read(BLOCK)):
        raise tarfile.ReadError(
            f"no member begins at byte {end}, the last {size - end} bytes are not used"
        )


def _add(found: dict[str, dict[str, Any]], member: tarfile.TarInfo) -> None:
    match = MEMBER.fullmatch(member.name)
    if not match:
        return
    key, suffix = match[1], f".{match[2].lower()}"
    sample = found.setdefault(key, {"odd": ""})
    if suffix in PICTURES:
        if "at" not in sample:
            sample.update(at=member.offset_data, size=member.size)
    elif suffix.endswith(PICTURES):
        sample["odd"] = member.name
    elif suffix == ".txt" or (suffix == ".json" and "text" not in sample):
        sample.update(
            text=member.offset_data, length=member.size, json=suffix == ".json"
        )


def _listed(path: Path, index: Path | None) -> tuple[np.ndarray, list[str]]:
    """Return `list_tar`, from the folder `index` if it is kept there."""
    if index is None:
        return list_tar(path)
    facts = path.stat()
    words = f"1 {path} {facts.st_size} {facts.st_mtime_ns}"
    digest = hashlib.sha256(os.fsencode(words)).hexdigest()[:16]
    kept = index.expanduser() / f"{path.stem}-{digest}.npy"
    if kept.is_file():
        return np.load(kept, allow_pickle=False), []
    samples, problems = list_tar(path)
    if not problems:
        with writing(kept) as beside, beside.open("wb") as file:
            np.save(file, samples)
    return samples, problems
