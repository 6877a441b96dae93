"""How much memory a call needs beyond what was there before it."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tokenflow._memory import kilobytes

_SELF = Path("/proc/self")


def peak_extra(call: Callable[[], Any], device: torch.device) -> int | None:
    """Run once and return the bytes that came on top, the result included.

    None where the system does not tell. Meant for a process that did little else.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not (_SELF / "clear_refs").exists():
        return None
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        (_SELF / "clear_refs").write_text("5")  # the high-water mark starts anew
    except OSError:
        return None
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    return kilobytes((_SELF / "status").read_text(), name)
