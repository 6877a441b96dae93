"""Where a result comes from: processor, libraries, versions."""

import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def describe(threads: int, isa: str | None, device: str) -> dict[str, Any]:
    """Return what a table must say of the machine it was measured on."""
    import torch

    import tokenflow_ext
    from tokenflow_ext import ceilings

    facts = tokenflow_ext.info()
    here = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": threads,
        "isa": isa or facts["isa"],
        "int8": ceilings.int8_instruction() if facts["isas"] else None,
        "tokenflow_ext": facts["version"],
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": facts["build"].get("compiler"),
    }
    if device.startswith("cuda"):
        here["gpu"] = torch.cuda.get_device_name(device)
    return here


def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    family = re.search(
        r"^cpu family\s*:\s*(\d+)\nmodel\s*:\s*(\d+)", text, re.MULTILINE
    )
    name = found[1] if found else platform.machine()
    return f"{name} (family {family[1]}, model {family[2]})" if family else name


def cores() -> int:
    """Cores this process may use."""
    import os

    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def commit() -> str | None:
    """The checkout's commit, with a + where files differ from it; None elsewhere."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "") or None
    except OSError:
        return None


def command() -> str:
    """The words this was started with."""
    return " ".join(["tokenflow", *sys.argv[1:]])
