"""transformers' base classes, also beside a torchvision that does not import.

transformers takes an installed torchvision for a working one and fails with it. One
made for another torch (a CUDA build beside a CPU torch) is common, and nothing here
needs it: then transformers is told that there is none.
"""

import importlib.util
import sys


def _hide_broken_torchvision() -> None:
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]


_hide_broken_torchvision()

from transformers import PreTrainedConfig, PreTrainedModel  # noqa: E402
from transformers.utils import ModelOutput  # noqa: E402

__all__ = ["ModelOutput", "PreTrainedConfig", "PreTrainedModel"]
