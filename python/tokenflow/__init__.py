"""TokenFlow: one sequence of image tokens that is understood and redrawn.

The models, their training and their evaluation, on the ops of `tokenflow_ext`.
Names are loaded when first touched, so `import tokenflow` costs nothing and needs
none of the heavier libraries.
Source: TokenFlow, arXiv:2412.03069.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "TokenFlowConfig": "tokenflow.config",
    "TokenFlowTokenizer": "tokenflow.tokenizer.model",
    "Encoded": "tokenflow.tokenizer.model",
    "TokenFlowForGeneration": "tokenflow.generation.model",
    "TokenFlowGenerationConfig": "tokenflow.generation.config",
    "TokenFlowForUnderstanding": "tokenflow.understanding.model",
    "TokenFlowProcessor": "tokenflow.understanding.processing",
    "TokenFlowUnderstandingConfig": "tokenflow.understanding.config",
    "TokenFlowUnified": "tokenflow.unified.model",
    "TokenFlowUnifiedConfig": "tokenflow.unified.config",
}
__all__ = [
    "Encoded",
    "TokenFlowConfig",
    "TokenFlowForGeneration",
    "TokenFlowForUnderstanding",
    "TokenFlowGenerationConfig",
    "TokenFlowProcessor",
    "TokenFlowTokenizer",
    "TokenFlowUnderstandingConfig",
    "TokenFlowUnified",
    "TokenFlowUnifiedConfig",
]


def __getattr__(name: str) -> Any:
    """Load a public name the first time somebody asks for it."""
    if name not in _HOME:
        raise AttributeError(f"module 'tokenflow' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
