"""transformers' base classes, also beside a torchvision that does not import.

transformers takes an installed torchvision for a working one and fails with it. One
made for another torch (a CUDA build beside a CPU torch) is common, and nothing here
needs it: then transformers is told that there is none.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def _hide_broken_torchvision() -> None:
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]


_hide_broken_torchvision()

from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput, logging  # noqa: E402

__all__ = [
    "AutoConfig",
    "ModelOutput",
    "PreTrainedConfig",
    "PreTrainedModel",
    "quiet",
    "register",
]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and reports about files of milliseconds."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def register(
    config: type[PreTrainedConfig], model: type[PreTrainedModel], auto: Any = AutoModel
) -> None:
    """Let AutoConfig and an auto class find a model of ours by its model_type."""
    AutoConfig.register(config.model_type, config, exist_ok=True)
    auto.register(config, model, exist_ok=True)
