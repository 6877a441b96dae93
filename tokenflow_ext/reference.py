"""The definitions, in plain torch: what every kernel is judged by, never tuned.

Each has the name and the arguments of its op, less `prepared`, `check` and `out`.
"""

from .ops.nearest import reference as nearest
from .ops.quantize import reference as quantize

__all__ = ["nearest", "quantize"]
