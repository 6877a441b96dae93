"""Exact, fast ops for dual-codebook image tokens; needs torch alone.

`quantize` and `nearest` find entries, `lookup` reads them, `pyramid_quantize` and
`pyramid_lookup` do both over a coarse-to-fine pyramid, `upsample_conv`, `conv3x3` and
`group_norm_silu` redraw. The same features give the same tokens, bit for bit, on every
device (docs/numerics.md).
"""

from . import interop, nn, reference
from ._info import info  # loads the compiled kernels, which register themselves
from .interop import accelerate_vq, fuse_decoder
from .ops.code_histogram import code_histogram
from .ops.conv3x3 import conv3x3
from .ops.group_norm_silu import group_norm_silu
from .ops.lookup import lookup
from .ops.nearest import nearest
from .ops.prepare import Prepared, prepare
from .ops.pyramid import pyramid_lookup, pyramid_quantize
from .ops.quantize import quantize
from .ops.upsample_conv import upsample_conv

__version__ = "0.1.0"

__all__ = [
    "Prepared",
    "accelerate_vq",
    "code_histogram",
    "conv3x3",
    "fuse_decoder",
    "group_norm_silu",
    "info",
    "interop",
    "lookup",
    "nearest",
    "nn",
    "prepare",
    "pyramid_lookup",
    "pyramid_quantize",
    "quantize",
    "reference",
    "upsample_conv",
]
