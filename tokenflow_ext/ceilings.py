"""What this machine can do at most, as loops in the instruction set in use.

Each runs on the calling thread and lets others run Python meanwhile; a benchmark starts
one per core and divides by what comes out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._info import kernels


def fma(rounds: int) -> float:
    """Run independent float32 multiply-adds; return operations done, two for each."""
    return _loops().fma_ceiling(rounds)


def int8(rounds: int) -> float:
    """Run int8 products added into wider integers; return operations done."""
    return _loops().int8_ceiling(rounds)


def int8_instruction() -> str:
    """Return the instruction that `int8` counts."""
    return _loops().int8_instruction()


def copy(source: Tensor, target: Tensor, rounds: int, *, around: bool = False) -> float:
    """Copy `source` to `target` again and again; return bytes read and written.

    Args:
        source: Contiguous, on the CPU.
        target: As many bytes, sharing no memory with it.
        rounds: Number of copies.
        around: Store past the caches; both must then start at a multiple of 64.

    Raises:
        ValueError: The tensors cannot be copied so.
    """
    size = source.numel() * source.element_size()
    for name, t in (("source", source), ("target", target)):
        if t.device.type != "cpu" or not t.is_contiguous():
            raise ValueError(f"copy: {name} must be contiguous and on the CPU")
        if t.numel() * t.element_size() != size:
            raise ValueError(f"copy: target must have the {size} bytes of source")
        if around and t.data_ptr() % 64:
            raise ValueError(f"copy: {name} must start at a multiple of 64 bytes")
    begin, end = source.data_ptr(), target.data_ptr()
    return _loops().copy_ceiling(begin, end, size, rounds, around)


def _loops() -> Any:
    if kernels is None:
        raise RuntimeError("ceilings: the compiled kernels are missing")
    return kernels
