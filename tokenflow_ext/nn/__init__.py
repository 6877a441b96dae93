"""Modules over the ops: what a tokenizer or a decoder is built of."""

from .books import QuantizerOutput
from .decoder import GroupNormSiLU, UpsampleConv
from .quantizer import DualCodebook, PyramidQuantizer

__all__ = [
    "DualCodebook",
    "GroupNormSiLU",
    "PyramidQuantizer",
    "QuantizerOutput",
    "UpsampleConv",
]
