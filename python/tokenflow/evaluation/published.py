"""What the published evaluation script does otherwise, under names of its own.

It judges pictures in [0, 1] with SSIM's data range set to 2, which inflates SSIM; and
it writes the originals of rFID by truncating ((x + 1) / 2) · 255, which makes 63 of the
256 levels one darker. Its PSNR and its redrawn pictures are as here.
"""

import torch
from torch import Tensor

from tokenflow.evaluation.metrics import RANGE, ssim


def ssim_published_script(images: Tensor, others: Tensor) -> Tensor:
    """Return SSIM with twice the true data range; else as `metrics.ssim`."""
    return ssim(images, others, data_range=2 * RANGE)


def darkened(images: Tensor) -> Tensor:
    """Return originals as the script writes them: uint8 of any shape -> the same."""
    table = torch.arange(256, dtype=torch.float32).div(255).sub(0.5).div(0.5)
    table = table.add(1).div(2).mul(255).to(torch.uint8)
    return table.to(images.device)[images.int()]
