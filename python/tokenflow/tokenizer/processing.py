"""Pictures to tensors in [-1, 1] and back.

Whatever a picture file holds (a rotation tag, a palette, transparency, 16 bits, grey)
becomes plain RGB bytes, then one of three ways to a square: crop the centre (what the
tokenizer and generation were trained on), pad to a square (understanding), or squash.
Shrinking halves with a box filter while the picture is at least twice too large, then
resizes once with a bicubic filter.
Source: the published evaluation and understanding code; the crop is that of ADM,
arXiv:2105.05233.
"""

import math
import os
import random
import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 100_000_000  # of one picture; more is refused before it is unpacked
MAX_ASPECT = 100  # a longer strip would be enlarged without bound by the crop
PAD_COLOUR = (127, 127, 127)
RESIZES = ("crop", "pad", "squash")
Pictures = (
    Image.Image | Tensor | np.ndarray | Sequence[Image.Image | np.ndarray | Tensor]
)


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
                _check_size(picture, name)
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


def _check_size(picture: Image.Image, name: object = "the picture") -> None:
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
    height, width = _as_size(size)
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
    _check_size(picture)
    while picture.width >= 2 * width and picture.height >= 2 * height:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, Image.Resampling.BOX)
    scale = max(height / picture.height, width / picture.width)
    covering = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(covering, Image.Resampling.BICUBIC)


def pad_to_square(
    picture: Image.Image, colour: tuple[int, int, int] = PAD_COLOUR
) -> Image.Image:
    """Return a picture in the middle of a square of `colour`, uncropped, unscaled."""
    side = max(picture.size)
    if picture.size == (side, side):
        return picture
    square = Image.new("RGB", (side, side), colour)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def fit(
    picture: Image.Image, size: int | tuple[int, int], resize: str = "crop"
) -> Image.Image:
    """Return a picture of exactly `size` as upright RGB.

    Args:
        picture: Any picture.
        size: Side, or (height, width).
        resize: "crop" covers the size and cuts the centre; "pad" pads to a square
            first and resizes all of it; "squash" resizes and ignores proportions.

    Raises:
        ValueError: The picture is empty, too large or a strip, `size` no size, or
            `resize` unknown.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize must be one of {list(RESIZES)}, got {resize!r}")
    _check_size(picture)
    picture = to_rgb(picture)
    if resize == "crop":
        return center_crop(picture, size)
    height, width = _as_size(size)
    if resize == "pad":
        picture = pad_to_square(picture)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _as_size(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(isinstance(s, Integral) and s > 0 for s in sides):
        raise ValueError(
            "size must be a side or (height, width), positive whole numbers, "
            f"got {size!r}"
        )
    return int(sides[0]), int(sides[1])


def to_tensor(picture: Image.Image) -> Tensor:
    """Return an RGB picture as [3, H, W] float32 in [-1, 1]: (v / 255 − 0.5) / 0.5."""
    values = torch.from_numpy(np.array(picture.convert("RGB")))
    return values.permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)


def to_uint8(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as bytes: the floor of clamp(127.5·x + 128, 0, 255).

    Any shape and float dtype; NaN becomes 0.
    """
    values = images.float().mul(127.5).add(128).clamp(0, 255)
    return values.nan_to_num(0.0).to(torch.uint8)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Return [B, 3, H, W] in [-1, 1] as a list of B pictures."""
    arrays = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def to_batch(
    images: Pictures, size: int | tuple[int, int], resize: str = "crop"
) -> Tensor:
    """Return one picture or many as one batch [B, 3, H, W] in [-1, 1].

    Args:
        images: A PIL picture; a uint8 array [H, W, 3], [H, W] or [B, H, W, 3]; a uint8
            tensor [3, H, W] or [B, 3, H, W]; a list of any of these; or a float tensor
            [3, H, W] or [B, 3, H, W] in [-1, 1], which is taken as it is and never
            resized.
        size: Side, or (height, width), for everything but float tensors.
        resize: How to get there, see `fit`.

    Returns:
        Float tensors keep dtype and device; everything else is float32 on the CPU.

    Raises:
        TypeError: Something else was given, or the dtype is wrong.
        ValueError: A shape, a range or a picture is wrong.
    """
    if isinstance(images, Tensor) and images.is_floating_point():
        return _checked_floats(images)
    if isinstance(images, list | tuple):
        if not images:
            raise ValueError("images: at least one picture is needed, got none")
        batches = [to_batch(image, size, resize) for image in images]
        if len({batch.shape[1:] for batch in batches}) > 1:
            raise ValueError(
                "images: float tensors in one list must have one shape, got "
                f"{[list(batch.shape[-3:]) for batch in batches]}"
            )
        return torch.cat(batches)
    pictures = _as_pictures(images)
    return torch.stack([to_tensor(fit(p, size, resize)) for p in pictures])


def _checked_floats(images: Tensor) -> Tensor:
    batch = images[None] if images.ndim == 3 else images
    if batch.ndim != 4 or batch.shape[1] != 3:
        raise ValueError(
            "images: a float tensor must be [B, 3, H, W] or [3, H, W], "
            f"got {list(images.shape)}"
        )
    if batch.device.type == "cpu" and batch.numel() and batch.abs().max() > 2:
        raise ValueError(
            "images: a float tensor must be in [-1, 1], got values up to "
            f"{batch.abs().max():g}; pass uint8 for values in [0, 255]"
        )
    return batch


def _as_pictures(images: object) -> list[Image.Image]:
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8:
            raise TypeError(
                f"images: a tensor must be uint8 or floating point, got {images.dtype}"
            )
        if images.ndim not in (3, 4) or images.shape[-3] != 3:
            raise ValueError(
                "images: a uint8 tensor must be [B, 3, H, W] or [3, H, W], "
                f"got {list(images.shape)}"
            )
        images = images.movedim(-3, -1).cpu().numpy()
    if not isinstance(images, np.ndarray):
        raise TypeError(
            "images: must be PIL pictures, uint8 arrays or tensors, or a list of "
            f"them, got {type(images).__name__}"
        )
    if images.dtype != np.uint8:
        raise TypeError(f"images: a numpy array must be uint8, got {images.dtype}")
    if images.ndim == 2:
        return [Image.fromarray(images)]
    if images.ndim not in (3, 4) or images.shape[-1] != 3:
        raise ValueError(
            "images: a uint8 array must be [H, W, 3], [B, H, W, 3] or [H, W], "
            f"got {list(images.shape)}"
        )
    if 0 in images.shape[-3:-1]:
        raise ValueError(f"images: must not be empty, got {list(images.shape)}")
    batch = images[None] if images.ndim == 3 else images
    if not len(batch):
        raise ValueError("images: at least one picture is needed, got none")
    return [Image.fromarray(np.ascontiguousarray(image)) for image in batch]
