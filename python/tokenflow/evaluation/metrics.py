"""Numbers that compare pictures and that describe the use of a codebook.

Pictures are uint8 here: what a viewer gets, with the data range 255 stated once.
Source: SSIM after Wang et al. 2004 in the form scikit-image computes by default
(7 x 7 uniform window, sample covariance, mean over the interior and the channels).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

RANGE = 255.0
WINDOW = 7


def _check(name: str, images: Tensor, others: Tensor) -> None:
    if images.shape != others.shape or images.ndim != 4:
        raise ValueError(
            f"{name}: both must be [B, C, H, W] of one shape, "
            f"got {list(images.shape)} and {list(others.shape)}"
        )
    if images.dtype != torch.uint8 or others.dtype != torch.uint8:
        raise TypeError(
            f"{name}: both must be uint8, got {images.dtype} and {others.dtype}"
        )


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each pair, in dB.

    Args:
        images: [B, C, H, W] uint8.
        others: The same shape and dtype.

    Returns:
        [B] float64; infinite for equal pictures.

    Raises:
        ValueError: The shapes differ or are not [B, C, H, W].
        TypeError: A dtype is not uint8.
    """
    _check("psnr", images, others)
    error = (_float64(images) - _float64(others)).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(RANGE**2 / error)


def ssim(images: Tensor, others: Tensor, *, data_range: float = RANGE) -> Tensor:
    """Return the structural similarity of each pair.

    Arguments, dtypes and errors as `psnr`; height and width at least 7. `data_range`
    scales the two constants that keep the quotient finite; bytes have 255.

    Returns:
        [B] float64 in [-1, 1].
    """
    _check("ssim", images, others)
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(
            f"ssim: height and width must be at least {WINDOW}, "
            f"got {list(images.shape[-2:])}"
        )
    x, y = _float64(images), _float64(others)
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    var_x = sample * (_window_mean(x * x) - mean_x**2)
    var_y = sample * (_window_mean(y * y) - mean_y**2)
    both = sample * (_window_mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    bottom = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return (top / bottom).mean(dim=(1, 2, 3))


def _float64(images: Tensor) -> Tensor:
    """Return float64 values, on the CPU where the device has no such numbers."""
    return (images.cpu() if images.device.type == "mps" else images).double()


def _window_mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.avg_pool2d(x, (WINDOW, 1), 1), (1, WINDOW), 1)


def usage(counts: Tensor) -> float:
    """Return the share of entries used at least once. counts: [K]."""
    return (counts > 0).double().mean().item()


def entropy_bits(counts: Tensor) -> float:
    """Return the entropy of how often each entry is used, in bits, 0 where none is.

    What an ideal coder that knows these counts spends on one token; at most
    log2 K. counts: [K].
    """
    total = counts.sum()
    if total == 0:
        return 0.0
    share = counts[counts > 0].double() / total
    return max(-(share * share.log2()).sum().item(), 0.0)


def perplexity(counts: Tensor) -> float:
    """Return 2^entropy of how often each entry is used, 0 where none is.

    K where all entries are used alike, 1 where a single one is. counts: [K].
    """
    return 2 ** entropy_bits(counts) if counts.sum() else 0.0
