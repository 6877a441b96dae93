"""Published understanding models, made ours.

The language model and the projector come from a folder as LLaVA's code writes it, the
image tokenizer from a file of its own, unless the folder holds it. Stage 1's
`mm_projector.bin` goes with a language model that is named beside it.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tokenflow import checkpoint
from tokenflow._language import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from tokenflow._transformers import AutoConfig, quiet
from tokenflow.config import TokenFlowConfig
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.understanding.config import TokenFlowUnderstandingConfig
from tokenflow.understanding.processing import TokenFlowProcessor

if TYPE_CHECKING:
    from tokenflow.understanding.model import TokenFlowForUnderstanding

TEMPLATES = {"qwen2": "qwen_2_5", "llama": "vicuna_v1"}  # of the published models


def from_upstream(
    cls: type["TokenFlowForUnderstanding"],
    source: str | os.PathLike,
    tokenizer: TokenFlowTokenizer | None = None,
    *,
    language_model: str | os.PathLike | None = None,
    tokenizer_config: TokenFlowConfig | None = None,
) -> "TokenFlowForUnderstanding":
    """Read a published model, safely; `save_pretrained` then converts it.

    Weights keep the dtype they have, the tokenizer's are float32.

    Args:
        source: A folder of a LLaVA-like model, or stage 1's `mm_projector.bin`.
        tokenizer: Of pictures; may be None where the folder holds its weights.
        language_model: For `mm_projector.bin`: a folder or hub id of transformers.
        tokenizer_config: Sizes of the tokenizer in the folder, recognised when None.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: Something is damaged, missing or of other sizes; the message names
            the file and the first differing weights.
    """
    if Path(source).is_dir():
        return _from_folder(cls, Path(source), tokenizer, tokenizer_config)
    return _from_projector(cls, source, tokenizer, language_model)


def _from_folder(
    cls: type["TokenFlowForUnderstanding"],
    folder: Path,
    tokenizer: TokenFlowTokenizer | None,
    tokenizer_config: TokenFlowConfig | None,
) -> "TokenFlowForUnderstanding":
    found = checkpoint.read_llava(folder)
    if tokenizer is None:
        tokenizer = _inside(folder, found, tokenizer_config)
    sizes = tokenizer.config
    half = found.feature_width == sizes.semantic_dim
    text = AutoConfig.for_model(**found.text)
    config = TokenFlowUnderstandingConfig(
        tokenizer_config=sizes,
        text_config=text,
        strategy="semantic" if half else "last",
    )
    processor = None
    if (folder / "tokenizer_config.json").is_file():
        processor = TokenFlowProcessor(
            AutoTokenizer.from_pretrained(folder, config=text),
            sizes.image_size,
            config.image_tokens,
            found.resize,
            TEMPLATES[text.model_type],
        )
        config.image_token_id = processor.image_token_id
    with torch.device("meta"):
        expected = cls(config).state_dict()
    expected = {k: v for k, v in expected.items() if not k.startswith("tokenizer.")}
    state = checkpoint.understanding_state(
        found.weights, expected, folder, tied=config.tie_word_embeddings
    )
    dtype = next(iter(state.values())).dtype
    eyes = {f"tokenizer.{k}": v for k, v in tokenizer.float().state_dict().items()}
    with quiet():
        model = super(cls, cls).from_pretrained(
            None, config=config, state_dict={**state, **eyes}, dtype=dtype
        )
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.silence_pictures()
    model.processor = processor
    return model.eval()


def _inside(
    folder: Path, found: checkpoint.Llava, config: TokenFlowConfig | None
) -> TokenFlowTokenizer:
    """Return the image tokenizer that the folder holds."""
    if not found.tower:
        raise ValueError(
            f"convert: {folder} must come with an image tokenizer, it holds none; name "
            "its file or folder"
        )
    config = config or checkpoint.recognise(found.tower, folder)
    with torch.device("meta"):
        tokenizer = TokenFlowTokenizer(config)
    kind = config.semantic_encoder["kind"]
    checkpoint.fill(tokenizer, found.tower, kind, folder)
    return tokenizer


def _from_projector(
    cls: type["TokenFlowForUnderstanding"],
    source: str | os.PathLike,
    tokenizer: TokenFlowTokenizer | None,
    language_model: Any,
) -> "TokenFlowForUnderstanding":
    weights = checkpoint.read_projector(source)
    if tokenizer is None or language_model is None:
        raise ValueError(
            f"convert: {source} holds a projector alone; an image tokenizer and a "
            "language model must be named"
        )
    with quiet():
        language = AutoModelForCausalLM.from_pretrained(language_model)
        words = AutoTokenizer.from_pretrained(language_model)
    model = cls.from_parts(tokenizer, language, words, template="plain")
    parts = model.projector.state_dict(prefix="projector.")
    state = checkpoint.understanding_state(weights, parts, source)
    model.projector.load_state_dict(
        {key.removeprefix("projector."): value for key, value in state.items()}
    )
    return model
