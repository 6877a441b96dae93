"""What a unified model is made of: a generation model, and how it is spoken to."""

from typing import Any

from tokenflow.generation.config import TokenFlowGenerationConfig
from tokenflow.tokenizer.processing import RESIZES
from tokenflow.understanding import prompts


class TokenFlowUnifiedConfig(TokenFlowGenerationConfig):
    """All numbers that define a unified model.

    The fields of `TokenFlowGenerationConfig`, and two more. The text ids, those below
    `image_start`, have one for `<image>` among them.

    Args:
        template: Of conversations, see `understanding.prompts.TEMPLATES`.
        resize: How a picture that is asked about becomes square: "pad", "crop" or
            "squash".

    Raises:
        ValueError: A value is out of its range.
    """

    model_type = "tokenflow_unified"

    template: str = "qwen_2_5"
    resize: str = "pad"

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: D105
        prompts.template(self.template)
        if self.resize not in RESIZES:
            raise ValueError(
                f"TokenFlowUnifiedConfig: resize must be one of {list(RESIZES)}, "
                f"got {self.resize!r}"
            )
        super().__post_init__(**kwargs)
