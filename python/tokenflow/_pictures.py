"""Picture files to upright RGB, and crops of them.

Whatever a picture file holds (a rotation tag, a palette, transparency, 16 bits, grey)
becomes plain RGB bytes. A crop first halves the picture with a box filter while it is
at least twice too large, then resizes once with a bicubic filter. This is what models
see and what they train on, so every room reads pictures with these functions.
Source: the crops are those of ADM, arXiv:2105.05233.
"""

import math
import os
import random
import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # of one picture; more is refused before it is unpacked
MAX_ASPECT = 100  # a longer strip would be enlarged without bound by the crop


def open_image(source: str | os.PathLike | BinaryIO) -> Image.Image:
    """Read a picture file whole and return it as upright RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no picture, is truncated, or unpacks to more than
            `MAX_PIXELS` pixels; the message names the file.
    """
    name = source if isinstance(source, str | os.PathLike) else "the picture"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as picture:
                check_size(picture, name)
                return to_rgb(picture)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"open_image: {name} must have at most {MAX_PIXELS:,} pixels ({error})"
        ) from None
    except UnidentifiedImageError:
        raise ValueError(
            f"open_image: {name} must be a picture in a format Pillow reads; "
            "it is not, or its start is damaged"
        ) from None
    except (FileNotFoundError, IsADirectoryError, PermissionError, ValueError):
        raise
    except Exception as error:  # given damaged bytes, a decoder may raise anything
        raise ValueError(
            f"open_image: {name} must be a whole picture; it is truncated or damaged "
            f"({error})"
        ) from None


def check_size(picture: Image.Image, name: object = "the picture") -> None:
    """Refuse a picture that is empty, a strip, or larger than `MAX_PIXELS`."""
    width, height = picture.size
    if not width or not height:
        raise ValueError(f"{name} must not be empty, got {width}×{height} pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{name} must have at most {MAX_PIXELS:,} pixels, "
            f"got {width}×{height} = {width * height:,}"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(
            f"{name} must not be more than {MAX_ASPECT} times longer than wide, "
            f"got {width}×{height} pixels"
        )


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture as upright 8-bit RGB.

    The EXIF orientation is applied, transparency of any kind is laid on white, and
    16-bit grey is scaled to 8 bits (v / 257, rounded).

    Raises:
        ValueError: The picture holds floating point or 32-bit numbers, whose range
            nothing says.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        return _from_16_bit(picture).convert("RGB")
    if picture.mode == "F":
        raise ValueError(
            "to_rgb: a picture must hold 8-bit or 16-bit values, got floating point "
            "(mode F); scale it to 8 bits first"
        )
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def _from_16_bit(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"to_rgb: a picture of mode {picture.mode} must hold 16-bit values in "
            f"[0, 65535], got {values.min()} to {values.max()}"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def center_crop(picture: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """Return the centre of a picture, `size` (a side, or height and width) large.

    The picture is first shrunk or enlarged until it just covers the size: for a
    square, until its short side is the side.
    """
    height, width = as_size(size)
    picture = _cover(picture, height, width)
    top = (picture.height - height) // 2
    left = (picture.width - width) // 2
    return picture.crop((left, top, left + width, top + height))


def random_crop(
    picture: Image.Image, size: int, rng: random.Random, zoom: float = 0.8
) -> Image.Image:
    """Return a random square of a picture, for training.

    The short side becomes a random length from `size` to size / `zoom`, rounded up;
    then a square of side `size` is cut anywhere.
    """
    target = rng.randrange(size, math.ceil(size / zoom) + 1)
    picture = _cover(picture, target, target)
    top = rng.randrange(picture.height - size + 1)
    left = rng.randrange(picture.width - size + 1)
    return picture.crop((left, top, left + size, top + size))


def _cover(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Resize so that the picture covers height × width and touches it on one axis."""
    check_size(picture)
    while picture.width >= 2 * width and picture.height >= 2 * height:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, Image.Resampling.BOX)
    scale = max(height / picture.height, width / picture.width)
    covering = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(covering, Image.Resampling.BICUBIC)


def as_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return a side, or height and width, as (height, width)."""
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(isinstance(s, Integral) and s > 0 for s in sides):
        raise ValueError(
            "size must be a side or (height, width), positive whole numbers, "
            f"got {size!r}"
        )
    return int(sides[0]), int(sides[1])
