"""Two ways to redraw a picture without a model: what a tokenizer must beat."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_colour(images: Tensor) -> Tensor:
    """Return each picture as its mean colour: uint8 [N, 3, H, W] -> the same."""
    mean = images.float().mean(dim=(2, 3), keepdim=True).round()
    return mean.to(torch.uint8).expand_as(images).contiguous()


def thumbnail(images: Tensor, side: int) -> Tensor:
    """Return each picture shrunk to side x side and enlarged again, uint8.

    Area down, bicubic up. At three bytes a cell and a side as the token grid's it
    takes about as many bits as the tokens.
    """
    small = F.adaptive_avg_pool2d(images.float(), side).round()
    large = F.interpolate(small, size=images.shape[-2:], mode="bicubic")
    return large.round().clamp(0, 255).to(torch.uint8)
