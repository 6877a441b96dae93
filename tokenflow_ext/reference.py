"""The definitions, in plain torch: what every kernel is judged by, never tuned.

Each has the name and the arguments of its op, less `prepared`, `check` and `out`.
"""

from .ops.code_histogram import reference as code_histogram
from .ops.conv3x3 import reference as conv3x3
from .ops.group_norm_silu import reference as group_norm_silu
from .ops.lookup import reference as lookup
from .ops.nearest import reference as nearest
from .ops.pyramid import reference_lookup as pyramid_lookup
from .ops.pyramid import reference_quantize as pyramid_quantize
from .ops.quantize import reference as quantize
from .ops.upsample_conv import reference as upsample_conv

__all__ = [
    "code_histogram",
    "conv3x3",
    "group_norm_silu",
    "lookup",
    "nearest",
    "pyramid_lookup",
    "pyramid_quantize",
    "quantize",
    "upsample_conv",
]
