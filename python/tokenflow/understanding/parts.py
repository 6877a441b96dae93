"""A tokenizer, or a teacher, and a language model put together with a new projector."""

import copy
from typing import TYPE_CHECKING, Any

import torch

from tokenflow._transformers import PreTrainedModel
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.teachers import Teacher
from tokenflow.understanding.config import CONTINUOUS, TokenFlowUnderstandingConfig
from tokenflow.understanding.processing import TokenFlowProcessor
from tokenflow.understanding.projector import Projector

if TYPE_CHECKING:
    from tokenflow.understanding.model import TokenFlowForUnderstanding


def from_parts(
    cls: type["TokenFlowForUnderstanding"],
    tokenizer: TokenFlowTokenizer | Teacher,
    language_model: PreTrainedModel,
    text_tokenizer: Any = None,
    *,
    strategy: str = "last",
    template: str = "qwen_2_5",
    resize: str = "pad",
    image_size: int | None = None,
) -> "TokenFlowForUnderstanding":
    """Put a tokenizer and a language model together, with a new projector.

    The weights are shared with the parts, not copied.

    Args:
        tokenizer: Of pictures; or a teacher as `load_teacher` returns it, to read
            its continuous features instead.
        language_model: Any causal language model of transformers.
        text_tokenizer: Of its words; without it `processor` is to be set later.
        strategy: See `TokenFlowUnderstandingConfig`.
        template, resize: See `TokenFlowProcessor`.
        image_size: With a teacher: side of the pictures.

    Raises:
        ValueError: A teacher comes without image_size or of unknown options, or a
            tokenizer with it.
    """
    config = TokenFlowUnderstandingConfig(
        text_config=language_model.config,
        **_seeing(tokenizer, strategy, image_size),
    )
    processor = None
    if text_tokenizer is not None:
        processor = TokenFlowProcessor(
            text_tokenizer,
            config.image_size,
            config.image_tokens,
            resize,
            template,
        )
        config.image_token_id = processor.image_token_id
    with torch.device("meta"):
        model = cls(config)
    width = (config.feature_width, config.text_config.hidden_size)
    model.projector = Projector(*width).to(language_model.device, language_model.dtype)
    model.eye.load_state_dict(tokenizer.float().state_dict(), assign=True)
    model.eye.requires_grad_(False).eval()
    model.language_model = language_model
    model.generation_config = copy.deepcopy(language_model.generation_config)
    model.silence_pictures()
    model.processor = processor
    return model.eval()


def _seeing(
    eye: TokenFlowTokenizer | Teacher, strategy: str, image_size: int | None
) -> dict[str, Any]:
    """Return the fields of a config that say what looks at pictures."""
    taught = isinstance(eye, Teacher)
    if taught != (image_size is not None):
        raise ValueError(
            "from_parts: image_size must be given with a teacher and only then, got "
            f"{image_size} with a {type(eye).__name__}"
        )
    if not taught:
        return {"tokenizer_config": eye.config, "strategy": strategy}
    if eye.options is None:
        raise ValueError("from_parts: a teacher must have options, got None")
    height, width = eye.grid(image_size, image_size)
    sizes = {"image_size": image_size, "tokens": height * width, "width": eye.width}
    return {"teacher_config": {**eye.options, **sizes}, "strategy": CONTINUOUS}
