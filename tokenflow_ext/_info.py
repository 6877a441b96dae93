"""What was built, and what this machine offers."""

from __future__ import annotations

import os
import warnings
from types import ModuleType
from typing import Any

import torch

NEEDS_TORCH = "2.11"  # the oldest whose stable ABI the kernels are built for

if torch.__version__ < NEEDS_TORCH:
    raise ImportError(
        f"tokenflow_ext: needs torch >= {NEEDS_TORCH}, found {torch.__version__}"
    )


def load_kernels() -> tuple[ModuleType | None, str]:
    """Load the compiled kernels; say once, clearly, when they are missing."""
    try:
        from . import _C
    except ImportError as error:
        reason = str(error)
        if os.environ.get("TOKENFLOW_EXT_REQUIRE_KERNELS", "0") not in ("", "0"):
            raise ImportError(
                "tokenflow_ext: TOKENFLOW_EXT_REQUIRE_KERNELS is set, but the compiled "
                f"kernels are missing ({reason})"
            ) from error
        warnings.warn(
            f"tokenflow_ext: the compiled kernels are missing ({reason}); every op "
            "runs on its torch fallback: same results, slower.",
            stacklevel=3,
        )
        return None, reason
    return _C, ""


kernels, reason_missing = load_kernels()


def info() -> dict[str, Any]:
    """Return facts about the build and the machine, for bug reports.

    Returns:
        version, torch, kernels ("compiled" or why not), build (compiler, torch and
        CUDA of the build), isa and isas (CPU instruction set in use, and available),
        threads, cuda_device (name, or None).
    """
    from . import __version__

    cuda = torch.cuda.is_available()
    return {
        "version": __version__,
        "torch": torch.__version__,
        "kernels": "compiled" if kernels else reason_missing,
        "build": kernels.build() if kernels else {},
        "isa": kernels.isa() if kernels else None,
        "isas": kernels.available_isas() if kernels else [],
        "threads": torch.get_num_threads(),
        "cuda_device": torch.cuda.get_device_name() if cuda else None,
    }
