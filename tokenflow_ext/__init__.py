"""Exact, fast ops for dual-codebook image tokens; needs torch alone.

`quantize` and `nearest` find entries, `lookup` reads them, `pyramid_quantize` and
`pyramid_lookup` do both over a coarse-to-fine pyramid, `upsample_conv` and
`group_norm_silu` redraw. The same features give the same tokens, bit for bit, on every
device (docs/numerics.md).
"""

from . import reference
from ._info import info  # loads the compiled kernels, which register themselves
from .ops.group_norm_silu import group_norm_silu
from .ops.nearest import nearest
from .ops.prepare import Prepared, prepare
from .ops.quantize import quantize
from .ops.upsample_conv import upsample_conv

__version__ = "0.1.0"

__all__ = [
    "Prepared",
    "group_norm_silu",
    "info",
    "nearest",
    "prepare",
    "quantize",
    "reference",
    "upsample_conv",
]
