"""Modules over the ops: what a tokenizer or a decoder is built of."""

from .decoder import GroupNormSiLU, UpsampleConv

__all__ = ["GroupNormSiLU", "UpsampleConv"]
