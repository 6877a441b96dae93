"""What is judged, picture by picture: drawn held-out ones, photographs, or a folder.

The photographs are those that ship inside scikit-image and scikit-learn. They are
for judging only: no model of this project was trained on them.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenflow.data.folder import Folder
from tokenflow.tokenizer.processing import fit, open_image

DRAWN = ("glyphs", "scenes")  # as many pictures as are wanted
SEED = 2024  # of the drawn pictures that are judged; training uses others
COUNT = 512  # of them, unless another number is wanted
READERS = min(8, os.cpu_count() or 1)  # threads that read files ahead
PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "ihc.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "camera.png",
    "brick.png",
    "grass.png",
    "gravel.png",
    "coins.png",
    "moon.png",
)


@dataclass(frozen=True)
class Pictures:
    """Named pictures of one size that are read when asked for."""

    names: Sequence[str]
    read: Callable[[int], Tensor]  # number -> uint8 [3, R, R]; OSError or ValueError
    readers: int = 0  # threads worth reading with; 0 for what is drawn

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.names)


def load(source: str, *, size: int, count: int | None = None) -> Pictures:
    """Return the pictures to judge; none is read yet.

    Args:
        source: "glyphs" or "scenes" (drawn, never shown in training), "photos", or a
            folder, whose sub-folders count too.
        size: Side in pixels; photographs are resized and cropped to their centre.
        count: At most how many; None for `COUNT` drawn ones, or all of a folder.

    Raises:
        FileNotFoundError: No such folder, no picture in it, font or packages missing.
        ValueError: count is below 1, or drawn pictures cannot be as small.
    """
    if count is not None and count < 1:
        raise ValueError(f"evaluate: count must be at least 1, got {count}")
    if source in DRAWN:
        return _drawn(source, size, COUNT if count is None else count)
    if source == "photos":
        return _photos(size, count)
    if not Path(source).is_dir():
        raise FileNotFoundError(
            "evaluate: data must be 'glyphs', 'scenes', 'photos' or a folder, "
            f"got {source}"
        )
    names = list(Folder(source, captions=False).names)[:count]

    def read(i: int) -> Tensor:
        return as_bytes(fit(open_image(Path(source) / names[i]), size))

    return Pictures(names, read, READERS)


def as_bytes(picture: Image.Image) -> Tensor:
    """Return an RGB picture as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def batches(
    pictures: Pictures, size: int, failed: Callable[[str, Exception], Any]
) -> Iterator[Tensor]:
    """Yield uint8 [B, 3, R, R] in order, B = `size` but for the last batch.

    A picture that cannot be read is told to `failed`, by name, and left out; the
    batches are those of the others. No more than a few batches are held at a time.
    """
    good: list[Tensor] = []
    for name, found in zip(pictures.names, _read_ahead(pictures, size), strict=True):
        if isinstance(found, Exception):
            failed(name, found)
            continue
        good.append(found)
        if len(good) == size:
            yield torch.stack(good)
            good = []
    if good:
        yield torch.stack(good)


def _read_ahead(pictures: Pictures, ahead: int) -> Iterator[Tensor | Exception]:
    """Yield each picture, or why it cannot be read, at most `ahead` of them early."""

    def attempt(i: int) -> Tensor | Exception:
        try:
            return pictures.read(i)
        except (OSError, ValueError) as error:
            return error

    if not pictures.readers:
        yield from map(attempt, range(len(pictures)))
        return
    with ThreadPoolExecutor(pictures.readers) as pool:
        coming: deque = deque()
        for i in range(len(pictures)):
            coming.append(pool.submit(attempt, i))
            if len(coming) > ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _drawn(kind: str, size: int, count: int) -> Pictures:
    if kind == "glyphs":
        from tokenflow.data.glyphs import GlyphPictures

        glyphs = GlyphPictures("heldout", size=size, seed=SEED)

        def read(i: int) -> Tensor:
            return glyphs.draw(i).image

    else:
        from tokenflow.data.scenes import Scenes

        scenes = Scenes("heldout", size=size, seed=SEED)

        def read(i: int) -> Tensor:
            return scenes.draw(i).image

    return Pictures([f"{kind}/{i}" for i in range(count)], read)


def _photos(size: int, count: int | None) -> Pictures:
    """Return the installed sample photographs."""
    found: dict[str, Path] = {}
    try:
        import skimage.data

        folder = Path(skimage.data.__file__).parent
        found |= {
            f"scikit-image/{name}": folder / name
            for name in PHOTOS
            if (folder / name).is_file()
        }
    except ImportError:
        pass
    try:
        import sklearn.datasets

        folder = Path(sklearn.datasets.__file__).parent / "images"
        found |= {f"scikit-learn/{p.name}": p for p in sorted(folder.glob("*.jpg"))}
    except ImportError:
        pass
    if not found:
        raise FileNotFoundError(
            "evaluate: photos need scikit-image or scikit-learn; install "
            "tokenflow-ext[eval]"
        )
    names = list(found)[:count]

    def read(i: int) -> Tensor:
        return as_bytes(fit(open_image(found[names[i]]), size))

    return Pictures(names, read, READERS)
