"""Picture files for the tests of sources: whole ones, and broken in several ways."""

import io
import tarfile

import numpy as np
import torch
from PIL import Image

from tokenflow.data import BrokenPicture


def picture(number, size=(24, 16)):
    """A picture unlike those of other numbers, (width, height) = size."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def as_bytes(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb():
    """A PNG of a few kilobytes that unpacks to 10,001 × 10,000 pixels."""
    return as_bytes(Image.new("1", (10_001, 10_000)))


def broken():
    """{name: bytes} of files that look like pictures by their names alone."""
    jpeg = as_bytes(picture(0, (200, 200)), "JPEG")
    return {
        "empty.png": b"",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "text.png": "kein Bild, sondern Wörter".encode(),
        "bomb.png": bomb(),
        "strip.png": as_bytes(Image.new("RGB", (500, 1))),
        "noise.webp": bytes(np.random.default_rng(0).integers(0, 256, 500, np.uint8)),
    }


def write(folder, files):
    """Write {relative name: bytes, text or picture} below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Image.Image):
            content = as_bytes(content, "PNG")
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(content)
    return folder


def make_tar(path, members, kind=tarfile.USTAR_FORMAT):
    """Write {name: bytes, text, picture or None for a folder} as a tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
                continue
            if isinstance(content, str):
                content = content.encode()
            if not isinstance(content, bytes):
                content = as_bytes(content)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


class Numbered:
    """A source of plain pictures whose colour tells their number; some are broken."""

    def __init__(self, length, broken=(), size=(3, 8, 8), caption=None, sizes=None):
        self.length, self.broken, self.size = length, frozenset(broken), size
        self.caption, self.sizes = caption, sizes

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        assert 0 <= index < self.length
        if index in self.broken:
            raise BrokenPicture(f"picture {index} is broken")
        image = torch.zeros(self.size, dtype=torch.uint8)
        image[0], image[1] = index % 256, index // 256
        sample = {"image": image, "other": object}
        if self.caption:
            sample["caption"] = self.caption.format(index)
        return sample


class Blocked(Numbered):
    """The same, in blocks of ten, two of which fit."""

    window = 2

    def blocks(self):
        return [10] * (self.length // 10)
