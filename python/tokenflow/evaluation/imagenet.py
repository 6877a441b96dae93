"""The paper's protocol: the 50,000 validation pictures of ImageNet-1k.

A folder of class folders, every picture, in the order of the names of classes and
files. A picture is converted to RGB as it is stored (rotation tags are not applied),
halved by a box filter while its short side is at least twice the model's, resized once
by a bicubic filter and cut to its centre. rFID compares the redrawn pictures with
these crops; beside that stands the published script's, whose crops are a little dark
(see `published`).
Source: the published evaluation script; the crop is that of ADM, arXiv:2105.05233.
"""

from pathlib import Path

from PIL import Image
from torch import Tensor

from tokenflow._pictures import center_crop
from tokenflow.data.folder import Folder
from tokenflow.evaluation.pictures import READERS, Pictures, as_bytes

PICTURES, CLASSES = 50_000, 1_000


def load(folder: str | Path, *, size: int) -> Pictures:
    """Return the pictures of a folder of class folders.

    Raises:
        FileNotFoundError: No such folder, or no picture in it.
        ValueError: A picture lies elsewhere than in a class folder.
    """
    found = Folder(folder, captions=False)
    names = found.names
    astray = next((name for name in names if name.count("/") != 1), None)
    if astray is not None:
        raise ValueError(
            f"imagenet: {folder} must hold one folder for each class with the "
            f"pictures in it, found {astray}"
        )

    def read(i: int) -> Tensor:
        return as_bytes(center_crop(as_stored(found.path / names[i]), size))

    return Pictures(names, read, READERS)


def complaint(pictures: Pictures) -> str | None:
    """Say how a set differs from the whole validation set; None where it does not."""
    classes = len({name.partition("/")[0] for name in pictures.names})
    if (len(pictures), classes) == (PICTURES, CLASSES):
        return None
    return (
        f"the validation set has {PICTURES:,} pictures of {CLASSES:,} classes, this "
        f"folder {len(pictures):,} of {classes:,}: not comparable with the paper"
    )


def as_stored(path: Path) -> Image.Image:
    """Read a file whole as RGB, rotation tag and transparency ignored.

    Raises:
        OSError: It cannot be read, is no picture or ends early.
        ValueError: It is damaged in another way.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError):
        raise
    except Exception as error:  # given damaged bytes, a decoder may raise anything
        raise ValueError(
            f"imagenet: {path} must be a whole picture ({error})"
        ) from None
