"""Checks of shapes, dtypes and devices, worded once for every op and backend."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def floating(op: str, **tensors: Tensor | None) -> None:
    """Every given tensor must be one, of a floating dtype we read."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{op}: {name} must be a tensor, got {type(tensor).__name__}"
            )
        if tensor.dtype not in FLOATS:
            raise TypeError(
                f"{op}: {name} must be float32, bfloat16, float16 or float64, "
                f"got {tensor.dtype}"
            )


def same_device(op: str, **tensors: Tensor | None) -> None:
    """Every given tensor must live where the first one does."""
    first = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first, device = name, tensor.device
        elif tensor.device != device:
            raise ValueError(
                f"{op}: {name} must be on the device of {first} ({device}), "
                f"got {tensor.device}"
            )


def book(op: str, name: str, tensor: Tensor) -> None:
    """A codebook must be [K, D] with K and D at least 1."""
    if tensor.dim() != 2 or tensor.shape[0] == 0 or tensor.shape[1] == 0:
        raise ValueError(
            f"{op}: {name} must be [K, D] with K and D at least 1, "
            f"got {list(tensor.shape)}"
        )


def books(op: str, semantic_book: Tensor, pixel_book: Tensor) -> None:
    """Two codebooks that share one numbering."""
    floating(op, semantic_book=semantic_book, pixel_book=pixel_book)
    book(op, "semantic_book", semantic_book)
    book(op, "pixel_book", pixel_book)
    if semantic_book.shape[0] != pixel_book.shape[0]:
        raise ValueError(
            f"{op}: pixel_book must have K = {semantic_book.shape[0]} entries as "
            f"semantic_book has, got {pixel_book.shape[0]}"
        )


def last_dim(op: str, name: str, tensor: Tensor, width: int, source: str) -> None:
    """The last dimension must be as wide as the book it is compared with."""
    if tensor.dim() == 0 or tensor.shape[-1] != width:
        raise ValueError(
            f"{op}: {name} must be [..., {width}], as wide as {source}, "
            f"got {list(tensor.shape)}"
        )


def weight(op: str, name: str, value: float) -> None:
    """A weight must be a finite number, at least 0."""
    if not 0 <= value <= 3.4e38:
        raise ValueError(f"{op}: {name} must be finite and at least 0, got {value}")


def indices(op: str, tensor: Tensor) -> None:
    """Indices must be an int64 or int32 tensor."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.int64, torch.int32):
        came = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{op}: indices must be an int64 or int32 tensor, got {came}")


def same_dtype(op: str, **tensors: Tensor | None) -> None:
    """Every given tensor must have the dtype of the first."""
    given = {name: t for name, t in tensors.items() if t is not None}
    first = next(iter(given))
    for name, tensor in given.items():
        if tensor.dtype != given[first].dtype:
            raise TypeError(
                f"{op}: {name} must have the dtype of {first}, {given[first].dtype}, "
                f"got {tensor.dtype}"
            )


def out(
    op: str, tensor: Tensor, size: tuple[int, ...], **inputs: Tensor | None
) -> None:
    """`out` must be able to hold the result, and no gradient be asked for."""
    if tuple(tensor.shape) != tuple(size):
        raise ValueError(
            f"{op}: out must be {list(size)}, the shape of the result, "
            f"got {list(tensor.shape)}"
        )
    if any(n > 1 and step == 0 for n, step in zip(size, tensor.stride(), strict=True)):
        raise ValueError(
            f"{op}: out must have a place of its own for every value, got an expanded "
            f"tensor with strides {list(tensor.stride())}"
        )
    if torch.is_grad_enabled():
        for name, t in {"out": tensor, **inputs}.items():
            if t is not None and t.requires_grad:
                raise RuntimeError(
                    f"{op}: out= is not differentiable, got {name} with requires_grad; "
                    "call it under torch.no_grad() or without out"
                )
