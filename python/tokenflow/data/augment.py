"""A picture as it is trained on: a square of bytes, cropped and perhaps mirrored.

"none" takes the centre, "adm" the random crop of the published training code: the
short side becomes a random length from R to ⌈R / 0.8⌉, and a square of side R is cut
anywhere. All that is random is drawn from the generator handed in.
Source: TokenFlow, arXiv:2412.03069, training; the crop is that of ADM,
arXiv:2105.05233.
"""

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenflow._pictures import center_crop, random_crop

AUGMENTS = ("none", "adm")


def augmented(
    image: Image.Image | Tensor,
    size: int,
    rng: random.Random,
    *,
    augment: str = "none",
    flip: bool = False,
) -> Tensor:
    """Return a picture as bytes, cropped to a square.

    Args:
        image: An RGB picture, or uint8 [3, H, W].
        size: Side R of the square.
        rng: What is random is drawn from it: the crop first, then the flip.
        augment: "none" or "adm", see above.
        flip: Mirror every second picture, left to right.

    Returns:
        [3, size, size] uint8.

    Raises:
        TypeError: The image is neither.
        ValueError: Its shape is wrong, it is empty or a strip, or `augment` unknown.
    """
    if augment not in AUGMENTS:
        raise ValueError(f"augment must be one of {list(AUGMENTS)}, got {augment!r}")
    if isinstance(image, Tensor) and augment == "none":
        _check(image)
        if image.shape[1:] == (size, size):  # as drawn pictures are
            return image.flip(2) if _mirrored(flip, rng) else image.clone()
    picture = _as_picture(image)
    if augment == "adm":
        picture = random_crop(picture, size, rng)
    else:
        picture = center_crop(picture, size)
    pixels = np.asarray(picture)
    if _mirrored(flip, rng):
        pixels = pixels[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _mirrored(flip: bool, rng: random.Random) -> bool:
    return flip and rng.random() < 0.5


def _as_picture(image: Image.Image | Tensor) -> Image.Image:
    if isinstance(image, Tensor):
        _check(image)
        return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if not isinstance(image, Image.Image):
        raise TypeError(
            "image: a source must give an RGB picture or a uint8 tensor [3, H, W], "
            f"got {type(image).__name__}"
        )
    return image if image.mode == "RGB" else image.convert("RGB")


def _check(image: Tensor) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            "image: a source must give an RGB picture or a uint8 tensor [3, H, W], "
            f"got {image.dtype} {list(image.shape)}"
        )
