"""How well a tokenizer redraws, beside two baselines that need no model.

Baselines: one colour (the picture's mean), and a thumbnail as small as the token
grid (area down, bicubic up), at three bytes a cell about as many bits as the tokens.
Everything is judged as uint8 pictures, data range 255, mean over the pictures.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tokenflow._files import writing
from tokenflow.evaluation.metrics import perplexity, psnr, ssim, usage
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.processing import to_uint8
from tokenflow.tokenizer.scales import token_counts


def mean_colour(images: Tensor) -> Tensor:
    """Return each picture as its mean colour: uint8 [N, 3, H, W] -> the same."""
    mean = images.float().mean(dim=(2, 3), keepdim=True).round()
    return mean.to(torch.uint8).expand_as(images).contiguous()


def thumbnail(images: Tensor, side: int) -> Tensor:
    """Return each picture shrunk to side x side and enlarged again, uint8."""
    small = F.adaptive_avg_pool2d(images.float(), side).round()
    large = F.interpolate(small, size=images.shape[-2:], mode="bicubic")
    return large.round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def redraw(
    model: TokenFlowTokenizer, images: Tensor, *, batch: int = 64
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Encode and decode pictures.

    Args:
        model: In evaluation mode.
        images: uint8 [N, 3, R, R] of the model's native size.
        batch: Pictures at a time.

    Returns:
        The redrawn pictures uint8 [N, 3, R, R], the indices int64 [N, L] on the CPU,
        and the seconds that "encode" and "decode" took.
    """
    device = model.device
    redrawn, indices = [], []
    seconds = {"encode": 0.0, "decode": 0.0}
    for part in images.split(batch):
        inputs = part.to(device).float().div(127.5).sub(1)
        start = time.perf_counter()
        encoded = model.encode(inputs)
        _wait(device)
        middle = time.perf_counter()
        output = to_uint8(model.decode(encoded, output="pt"))
        _wait(device)
        seconds["encode"] += middle - start
        seconds["decode"] += time.perf_counter() - middle
        redrawn.append(output.cpu())
        indices.append(encoded.indices.cpu())
    return torch.cat(redrawn), torch.cat(indices), seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def evaluate_reconstruction(
    model: TokenFlowTokenizer, images: Tensor, *, batch: int = 64
) -> dict[str, Any]:
    """Judge a tokenizer on pictures.

    Args:
        model: Any tokenizer; it is put into evaluation mode.
        images: uint8 [N, 3, R, R], N at least 1, R the model's image size.
        batch: Pictures at a time.

    Returns:
        A dict that JSON can hold: "pictures", "size", "tokens", "bits_per_pixel",
        psnr (dB) and ssim under "model", "mean_colour" and "thumbnail", "usage" and
        "perplexity" over all scales and under "scales" for each, and
        "pictures_per_second" for encode and decode.

    Raises:
        ValueError: images have another shape.
        TypeError: images are not uint8.
    """
    side = model.config.image_size
    if images.ndim != 4 or images.shape[1:] != (3, side, side) or not len(images):
        raise ValueError(
            f"evaluate: images must be [N, 3, {side}, {side}] with N at least 1, "
            f"got {list(images.shape)}"
        )
    if images.dtype != torch.uint8:
        raise TypeError(f"evaluate: images must be uint8, got {images.dtype}")
    model.eval()
    redrawn, indices, seconds = redraw(model, images, batch=batch)
    small = thumbnail(images, model.config.grid)
    size = model.config.codebook_size
    counts = torch.bincount(indices.flatten(), minlength=size)
    return {
        "pictures": len(images),
        "size": side,
        "tokens": indices.shape[1],
        "bits_per_pixel": indices.shape[1] * math.log2(size) / side**2,
        "model": _quality(redrawn, images),
        "mean_colour": _quality(mean_colour(images), images),
        "thumbnail": {
            "side": model.config.grid,
            "bits_per_pixel": 24 * model.config.grid**2 / side**2,
            **_quality(small, images),
        },
        "codebook_size": size,
        "usage": usage(counts),
        "perplexity": perplexity(counts),
        "scales": _per_scale(model, indices),
        "pictures_per_second": {
            name: len(images) / spent for name, spent in seconds.items()
        },
    }


def _quality(images: Tensor, originals: Tensor) -> dict[str, float]:
    return {
        "psnr": psnr(images, originals).mean().item(),
        "ssim": ssim(images, originals).mean().item(),
    }


def _per_scale(model: TokenFlowTokenizer, indices: Tensor) -> list[dict[str, Any]]:
    """Return the use of the codebook at each scale of the native schedule."""
    size, rows = model.config.codebook_size, []
    parts = indices.split(token_counts(model.scales), dim=1)
    for (height, width), part in zip(model.scales, parts, strict=True):
        counts = torch.bincount(part.flatten(), minlength=size)
        rows.append(
            {
                "scale": [height, width],
                "tokens": height * width,
                "usage": usage(counts),
                "perplexity": perplexity(counts),
            }
        )
    return rows


def as_text(result: dict[str, Any]) -> str:
    """Return the result of `evaluate_reconstruction` as a small table."""
    lines = [
        f"{result['pictures']} pictures of {result['size']} x {result['size']} pixels, "
        f"{result['tokens']} tokens each",
        f"{'':<22}{'PSNR dB':>9}{'SSIM':>8}{'bits/pixel':>12}",
    ]
    thumb = result["thumbnail"]
    table = (
        ("tokenizer", result["model"], result["bits_per_pixel"]),
        (
            f"thumbnail {thumb['side']} x {thumb['side']}",
            thumb,
            thumb["bits_per_pixel"],
        ),
        ("mean colour", result["mean_colour"], 24 / result["size"] ** 2),
    )
    for name, quality, bits in table:
        lines.append(
            f"{name:<22}{quality['psnr']:>9.2f}{quality['ssim']:>8.3f}{bits:>12.3f}"
        )
    lines.append(
        f"codebook: {result['usage']:.1%} of {result['codebook_size']} entries used, "
        f"perplexity {result['perplexity']:.0f}"
    )
    for row in result["scales"]:
        height, width = row["scale"]
        lines.append(
            f"  scale {height} x {width}: usage {row['usage']:.1%}, "
            f"perplexity {row['perplexity']:.0f}"
        )
    speed = result["pictures_per_second"]
    lines.append(
        f"pictures per second: encode {speed['encode']:.1f}, "
        f"decode {speed['decode']:.1f}"
    )
    return "\n".join(lines)


def save_grid(
    model: TokenFlowTokenizer, images: Tensor, path: Path, *, columns: int = 8
) -> None:
    """Write a PNG: rows of originals, each over the row of its redrawn pictures.

    images: uint8 [N, 3, R, R]; a last row that is not full is left out.
    """
    redrawn, _, _ = redraw(model, images)
    rows = []
    for first in range(0, len(images) - columns + 1, columns):
        for pictures in (images, redrawn):
            rows.append(torch.cat(list(pictures[first : first + columns]), dim=2))
    if not rows:
        raise ValueError(
            f"save_grid: at least {columns} pictures are needed, got {len(images)}"
        )
    sheet = torch.cat(rows, dim=1).permute(1, 2, 0).contiguous()
    picture = Image.fromarray(sheet.numpy())
    with writing(path) as beside:
        large = picture.resize((2 * picture.width, 2 * picture.height), 0)
        large.save(beside, format="PNG")
