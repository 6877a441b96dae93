"""Modules over the ops: what a tokenizer or a decoder is built of."""

from .books import QuantizerOutput
from .decoder import Conv3x3, GroupNormSiLU, UpsampleConv
from .quantizer import DualCodebook, PyramidQuantizer

__all__ = [
    "Conv3x3",
    "DualCodebook",
    "GroupNormSiLU",
    "PyramidQuantizer",
    "QuantizerOutput",
    "UpsampleConv",
]
