"""What the machine can do at most, as methods: multiply-adds, int8 products, copying.

Each builds a call and says how much one call does (`amount`). The CPU's are native
loops for the instruction set in use, one on each thread; the GPU's a large bfloat16
matrix product and a copy within its memory.
"""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from tokenflow.benchmark.method import Call, Methods, Values
from tokenflow_ext import ceilings

TINY = {"bytes": 1 << 16}
LABEL = "{bytes}"
UNITS = {"fma": "GFLOP/s", "int8": "GOP/s", "copy": "GB/s"}
_MOST = 1 << 29  # bytes of a copy; beyond, the rate no longer changes
method = Methods()


def make(values: Values, device: torch.device) -> Any:
    """Return the two buffers to copy between."""
    count = min(int(values["bytes"]), _MOST)
    room = max(count, 64 * torch.get_num_threads()) + 64  # may begin a little later
    source = torch.ones(room, dtype=torch.uint8, device=device)
    return SimpleNamespace(
        source=source, target=torch.zeros_like(source), bytes=count, device=device
    )


def _everywhere(run: Callable[[int], None]) -> Call:
    """A call of run(thread) on as many threads as torch uses."""

    def call() -> None:
        others = [
            threading.Thread(target=run, args=(i,))
            for i in range(1, torch.get_num_threads())
        ]
        for thread in others:
            thread.start()
        run(0)
        for thread in others:
            thread.join()

    return call


def _loop(call: Call, amount: float) -> Call:
    call.amount = amount  # type: ignore[attr-defined]
    return call


def _arithmetic(case: Any, loop: Callable[[int], float]) -> Call:
    rounds = 2_000_000
    each = loop(1) * rounds
    return _loop(
        _everywhere(lambda i: (loop(rounds), None)[1]), each * torch.get_num_threads()
    )


@method("fma", kind="ceiling")
def fma(case: Any) -> Call:
    """Float32 multiply-adds; on a GPU a bfloat16 product of 8192 rows."""
    if case.device.type != "cuda":
        return _arithmetic(case, ceilings.fma)
    a, b = torch.randn(2, 8192, 8192, device=case.device, dtype=torch.bfloat16)
    return _loop(lambda: a @ b, 2.0 * 8192**3)


@method("int8", kind="ceiling")
def int8(case: Any) -> Call:
    """Int8 products added up; on a GPU those of torch's int8 product."""
    if case.device.type != "cuda":
        return _arithmetic(case, ceilings.int8)
    shape = (2, 8192, 8192)
    a, b = torch.randint(-99, 99, shape, device=case.device, dtype=torch.int8)
    return _loop(lambda: torch._int_mm(a, b.T), 2.0 * 8192**3)


def _native_copy(case: Any, around: bool) -> Call:
    threads = torch.get_num_threads()
    each = max(64, case.bytes // threads // 64 * 64)
    rounds = max(1, (1 << 27) // each)
    source, target = (_aligned(t) for t in (case.source, case.target))

    def run(i: int) -> None:
        part = slice(i * each, (i + 1) * each)
        ceilings.copy(source[part], target[part], rounds, around=around)

    return _loop(_everywhere(run), 2.0 * each * rounds * threads)


def _aligned(buffer: torch.Tensor) -> torch.Tensor:
    return buffer[-buffer.data_ptr() % 64 :]


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@method("copy", kind="ceiling")
def copy(case: Any) -> Call:
    """As many bytes as the case moves, through the caches or around them."""
    if case.device.type == "cuda":
        return _loop(lambda: case.target.copy_(case.source), 2.0 * len(case.source))
    ways = [_native_copy(case, around) for around in (False, True)]
    return min(ways, key=lambda way: min(_seconds(way) for _ in range(4)))
