"""transformers' parts for language models, which cost seconds to import.

Apart from `_transformers`, so that the tokenizer alone stays quick to load.
"""

import tokenflow._transformers  # noqa: F401, I001  first: it settles what is imported

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    GenerationConfig,
    GenerationMixin,
    ProcessorMixin,
    TextIteratorStreamer,
)

__all__ = [
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoProcessor",
    "AutoTokenizer",
    "BatchFeature",
    "GenerationConfig",
    "GenerationMixin",
    "ProcessorMixin",
    "TextIteratorStreamer",
]
