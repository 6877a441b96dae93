"""The definitions, in plain torch: what every kernel is judged by, never tuned.

Each has the name and the arguments of its op, less `prepared`, `check` and `out`.
"""

from .ops.group_norm_silu import reference as group_norm_silu
from .ops.nearest import reference as nearest
from .ops.quantize import reference as quantize
from .ops.upsample_conv import reference as upsample_conv

__all__ = ["group_norm_silu", "nearest", "quantize", "upsample_conv"]
