"""How much memory there is to use."""

from pathlib import Path

import torch

_FACTS = Path("/proc/meminfo")


def available(device: torch.device | str = "cpu") -> int | None:
    """Bytes that could be allocated now; None where the system does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held
    if device.type != "cpu" or not _FACTS.exists():
        return None
    return kilobytes(_FACTS.read_text(), "MemAvailable")


def kilobytes(text: str, name: str) -> int:
    """Return the bytes of a line "name:  12 kB" of Linux's own tables."""
    (line,) = (row for row in text.splitlines() if row.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
