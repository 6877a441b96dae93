"""How well a tokenizer redraws, beside two baselines that need no model.

Pictures pass batch by batch: each is redrawn, judged and forgotten, so that a whole
validation set needs no more memory than a batch. Everything is judged as uint8
pictures, data range 255, mean over the pictures.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenflow.evaluation.baselines import mean_colour, thumbnail
from tokenflow.evaluation.metrics import RANGE, psnr, ssim
from tokenflow.evaluation.published import darkened, ssim_published_script
from tokenflow.evaluation.running import Apart, CodeUse, Means, Score
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.processing import from_uint8, to_uint8


@dataclass(frozen=True)
class Judges:
    """Networks that judge beside the formulas; each may be left out.

    Each is on the device of the pictures, which is the model's.
    """

    lpips: Any = None  # two batches [B, 3, H, W] in [-1, 1] -> [B]
    inception: Any = None  # uint8 [B, 3, H, W] -> [B, width], for rFID
    teacher: Any = None  # the like, with a `name`, for fréchet_teacher


@dataclass(frozen=True)
class Redrawn:
    """What `redraw` returns."""

    images: Tensor  # [B, 3, R, R] uint8, on the model's device
    indices: Tensor  # [B, L] int64
    encode_seconds: float
    decode_seconds: float


@torch.no_grad()
def redraw(model: TokenFlowTokenizer, images: Tensor) -> Redrawn:
    """Encode and decode one batch.

    Args:
        model: In evaluation mode.
        images: uint8 [B, 3, R, R] of the model's native size.
    """
    inputs = from_uint8(images.to(model.device))
    _wait(model.device)
    start = time.perf_counter()
    encoded = model.encode(inputs)
    _wait(model.device)
    middle = time.perf_counter()
    output = to_uint8(model.decode(encoded, output="pt"))
    _wait(model.device)
    end = time.perf_counter()
    return Redrawn(output, encoded.indices, middle - start, end - middle)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def evaluate_reconstruction(
    model: TokenFlowTokenizer,
    images: Tensor | Iterable[Tensor],
    *,
    batch: int = 64,
    judges: Judges | None = None,
    published: bool = False,
) -> dict[str, Any]:
    """Judge a tokenizer on pictures.

    Args:
        model: Any tokenizer; it is put into evaluation mode.
        images: uint8 [N, 3, R, R], N at least 1, R the model's image size; or batches
            of them, which are gone through once.
        batch: Pictures at a time, where images are one tensor.
        judges: Networks that judge too; none where it is None.
        published: Also compute rFID against originals as the published script writes
            them.

    Returns:
        A dict that JSON can hold; docs/evaluation.md defines every entry. "model" has
        psnr, ssim and ssim_published_script, and lpips where it was asked for;
        "rfid", "rfid_published_script" and "frechet_teacher" are there likewise.

    Raises:
        ValueError: images have another shape, or are too few for a distance.
        TypeError: images are not uint8.
    """
    judges = judges or Judges()
    model.eval()
    config, size = model.config, model.config.codebook_size
    quality, dull, small = (Means(s) for s in (_scores(judges), _PLAIN, _PLAIN))
    codes = CodeUse(model.scales, size)
    change = darkened if published else None
    rfid = judges.inception and Apart(judges.inception, change)
    by_teacher = judges.teacher and Apart(judges.teacher)
    count, encoding, decoding = 0, 0.0, 0.0
    for part in images.split(batch) if isinstance(images, Tensor) else images:
        _check(part, config.image_size)
        redrawn = redraw(model, part)
        originals = part.to(model.device)
        quality.update(redrawn.images, originals)
        dull.update(mean_colour(originals), originals)
        small.update(thumbnail(originals, config.grid), originals)
        codes.update(redrawn.indices)
        for distance in filter(None, (rfid, by_teacher)):
            distance.update(redrawn.images, originals)
        count += len(part)
        encoding += redrawn.encode_seconds
        decoding += redrawn.decode_seconds
    if not count:
        raise ValueError("evaluate: images must be at least 1, got none")
    pixels, tokens = config.image_size**2, sum(h * w for h, w in model.scales)
    result = {
        "pictures": count,
        "size": config.image_size,
        "tokens": tokens,
        "data_range": int(RANGE),
        "bits_per_pixel": tokens * math.log2(size) / pixels,
        "entropy_bits_per_pixel": codes.entropy_bits_per_picture() / pixels,
        "model": quality.result(),
        "mean_colour": dull.result(),
        "thumbnail": {
            "side": config.grid,
            "bits_per_pixel": 24 * config.grid**2 / pixels,
            **small.result(),
        },
        "codebook_size": size,
        **codes.overall(),
        "scales": codes.per_scale(),
        "pictures_per_second": {
            "encode": count / encoding,
            "decode": count / decoding,
        },
    }
    if rfid:
        result["rfid"] = rfid.result()
        if published:
            result["rfid_published_script"] = rfid.other_result()
    if by_teacher:
        result["frechet_teacher"] = {
            "teacher": judges.teacher.name,
            "distance": by_teacher.result(),
        }
    return result


def _check(images: Tensor, side: int) -> None:
    if images.ndim != 4 or images.shape[1:] != (3, side, side) or not len(images):
        raise ValueError(
            f"evaluate: images must be [N, 3, {side}, {side}] with N at least 1, "
            f"got {list(images.shape)}"
        )
    if images.dtype != torch.uint8:
        raise TypeError(f"evaluate: images must be uint8, got {images.dtype}")


_PLAIN: dict[str, Score] = {"psnr": psnr, "ssim": ssim}


def _scores(judges: Judges) -> dict[str, Score]:
    scores = {**_PLAIN, "ssim_published_script": ssim_published_script}
    if judges.lpips is not None:

        def lpips(images: Tensor, originals: Tensor) -> Tensor:
            with torch.no_grad():
                return judges.lpips(*(from_uint8(x) for x in (images, originals)))

        scores["lpips"] = lpips
    return scores
