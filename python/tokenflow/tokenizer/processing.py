"""Pictures to tensors in [-1, 1] and back.

A picture becomes upright RGB (`tokenflow._pictures`), then goes one of three ways to a
square: crop the centre (what the tokenizer and generation were trained on), pad to a
square (understanding), or squash.
Source: the published evaluation and understanding code.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenflow._pictures import MAX_ASPECT as MAX_ASPECT
from tokenflow._pictures import MAX_PIXELS as MAX_PIXELS
from tokenflow._pictures import as_size, center_crop, check_size, to_rgb
from tokenflow._pictures import open_image as open_image
from tokenflow._pictures import random_crop as random_crop

PAD_COLOUR = (127, 127, 127)
RESIZES = ("crop", "pad", "squash")
Pictures = (
    Image.Image | Tensor | np.ndarray | Sequence[Image.Image | np.ndarray | Tensor]
)


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
    check_size(picture)
    picture = to_rgb(picture)
    if resize == "crop":
        return center_crop(picture, size)
    height, width = as_size(size)
    if resize == "pad":
        picture = pad_to_square(picture)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def to_tensor(picture: Image.Image) -> Tensor:
    """Return an RGB picture as [3, H, W] float32 in [-1, 1]: (v / 255 − 0.5) / 0.5."""
    values = torch.from_numpy(np.array(picture.convert("RGB")))
    return values.permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)


def from_uint8(images: Tensor) -> Tensor:
    """Return bytes as float32 in [-1, 1], of any shape: v / 127.5 − 1."""
    return images.float().div(127.5).sub(1)


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
