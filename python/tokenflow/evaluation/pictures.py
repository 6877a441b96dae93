"""What is judged: held-out glyph pictures, sample photographs, or a folder.

The photographs are those that ship inside scikit-image and scikit-learn. They are
for judging only: no model of this project was trained on them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenflow._files import PICTURES
from tokenflow.tokenizer.processing import fit, open_image

SEED = 2024  # of the glyph pictures that are judged; training uses others
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


def load(source: str, *, size: int, count: int = 512) -> tuple[Tensor, list[str]]:
    """Return pictures to judge and their names.

    Args:
        source: "glyphs" (held-out glyph pictures), "photos", or a folder.
        size: Side in pixels; photographs are resized and cropped to their centre.
        count: How many glyph pictures; at most this many files of a folder.

    Returns:
        uint8 [N, 3, size, size], and N names.

    Raises:
        FileNotFoundError: No such folder, no picture in it, font or packages missing.
        ValueError: count is below 1, or a file is no picture.
    """
    if count < 1:
        raise ValueError(f"evaluate: count must be at least 1, got {count}")
    if source == "glyphs":
        return _glyphs(size, count)
    if source == "photos":
        photos = _photos()
        return _stack([*photos.values()], size), [*photos]
    paths = _files(Path(source))[:count]
    return _stack([open_image(path) for path in paths], size), [p.name for p in paths]


def _stack(pictures: Sequence[Image.Image], size: int) -> Tensor:
    arrays = [np.array(fit(picture, size)) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _glyphs(size: int, count: int) -> tuple[Tensor, list[str]]:
    from tokenflow.data.glyphs import GlyphPictures

    pictures = GlyphPictures("heldout", size=size, seed=SEED)
    images = torch.stack([pictures.draw(i).image for i in range(count)])
    return images, [f"glyphs/{i}" for i in range(count)]


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"evaluate: data must be 'glyphs', 'photos' or a folder, got {folder}"
        )
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
    if not paths:
        raise FileNotFoundError(f"evaluate: {folder} must hold pictures, it has none")
    return paths


def _photos() -> dict[str, Image.Image]:
    """Return the installed sample photographs by name."""
    found: dict[str, Image.Image] = {}
    try:
        import skimage.data

        folder = Path(skimage.data.__file__).parent
        for name in PHOTOS:
            if (folder / name).is_file():
                found[f"scikit-image/{name}"] = open_image(folder / name)
    except ImportError:
        pass
    try:
        import sklearn.datasets

        folder = Path(sklearn.datasets.__file__).parent / "images"
        for path in sorted(folder.glob("*.jpg")):
            found[f"scikit-learn/{path.name}"] = open_image(path)
    except ImportError:
        pass
    if not found:
        raise FileNotFoundError(
            "evaluate: photos need scikit-image or scikit-learn; install "
            "tokenflow-ext[eval]"
        )
    return found
