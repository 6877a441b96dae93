"""What an understanding model is made of, as values.

Source: the published configurations (SigLIP tokenizer with Qwen2.5-14B or
Vicuna-13B) and arXiv:2412.03069, tables 3 and 8.
"""

from typing import Any

from tokenflow._transformers import AutoConfig, PreTrainedConfig
from tokenflow.config import TokenFlowConfig
from tokenflow.tokenizer.model import STRATEGIES
from tokenflow.understanding.projector import PROJECTORS

CONTINUOUS = "continuous"  # no tokens: what a teacher says of each patch


class TokenFlowUnderstandingConfig(PreTrainedConfig):
    """A tokenizer, a language model, and how one is read by the other.

    To compare with, a teacher's continuous features may be read instead of tokens, as
    LLaVA-1.5 reads them; there is then no tokenizer.

    Args:
        tokenizer_config: `TokenFlowConfig` of the image tokenizer, or its dict; the
            smallest preset when None.
        text_config: Config of any causal language model of transformers, or its dict
            with `model_type`; Qwen2's defaults when None.
        strategy: Which features of the tokens are read: "last", "semantic", "all" or
            "residual"; see `TokenFlowTokenizer.understanding_features`. "continuous"
            with a teacher.
        projector: Kind of projector, "mlp2x_gelu".
        image_token_id: Id that stands in input_ids for one position of a picture;
            it needs no row in the embeddings. The first id behind the language
            model's vocabulary when None.
        tie_word_embeddings: Whether the language model's output shares its
            embeddings; taken from text_config when None.
        image_tokenizer: Shipped name or hub id of the tokenizer, whose weights are then
            not saved with the model's; they are when None.
        image_digest: Of the named tokenizer's weights that tokens come from; not
            checked when None.
        teacher_config: Of the teacher that is read instead of a tokenizer: its
            `Teacher.options`, and "image_size", "tokens" (of a picture) and "width".

    Raises:
        ValueError: A value is not one of those named, or there are a teacher and a
            tokenizer.
    """

    model_type = "tokenflow_understanding"
    sub_configs = {"tokenizer_config": TokenFlowConfig, "text_config": AutoConfig}

    tokenizer_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    strategy: str = "last"
    projector: str = "mlp2x_gelu"
    image_token_id: int | None = None
    tie_word_embeddings: bool | None = None
    image_tokenizer: str | None = None
    image_digest: str | None = None
    teacher_config: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: D105
        if self.teacher_config is not None:
            if self.tokenizer_config is not None or self.strategy != CONTINUOUS:
                raise ValueError(
                    "TokenFlowUnderstandingConfig: teacher_config must come without a "
                    f"tokenizer_config and with strategy {CONTINUOUS!r}, got strategy "
                    f"{self.strategy!r}"
                )
            if self.image_tokenizer is not None:
                raise ValueError(
                    "TokenFlowUnderstandingConfig: image_tokenizer must be None with a "
                    f"teacher_config, got {self.image_tokenizer!r}"
                )
        elif self.tokenizer_config is None:
            self.tokenizer_config = TokenFlowConfig.preset("mini")
        elif isinstance(self.tokenizer_config, dict):
            self.tokenizer_config = TokenFlowConfig(**self.tokenizer_config)
        text = {"model_type": "qwen2"} if self.text_config is None else self.text_config
        if isinstance(text, dict):
            values = {k: v for k, v in text.items() if k != "model_type"}
            text = AutoConfig.for_model(text["model_type"], **values)
        self.text_config = text
        if self.teacher_config is None and self.strategy not in STRATEGIES:
            raise ValueError(
                "TokenFlowUnderstandingConfig: strategy must be one of "
                f"{list(STRATEGIES)}, got {self.strategy!r}"
            )
        if self.projector not in PROJECTORS:
            raise ValueError(
                "TokenFlowUnderstandingConfig: projector must be one of "
                f"{list(PROJECTORS)}, got {self.projector!r}"
            )
        if self.image_token_id is None:
            self.image_token_id = text.vocab_size
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(text.tie_word_embeddings)
        text.tie_word_embeddings = self.tie_word_embeddings
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the values, without the folders that parts were read from."""
        values = super().to_dict()
        for part in self.sub_configs:
            if isinstance(values.get(part), dict):
                values[part].pop("_name_or_path", None)
        return values

    @property
    def image_size(self) -> int:
        """Side of the pictures."""
        if self.teacher_config is not None:
            return self.teacher_config["image_size"]
        return self.tokenizer_config.image_size

    @property
    def image_tokens(self) -> int:
        """Positions that one picture takes in a prompt."""
        if self.teacher_config is not None:
            return self.teacher_config["tokens"]
        if self.strategy in ("last", "semantic"):
            return self.tokenizer_config.grid**2
        return self.tokenizer_config.num_tokens

    @property
    def feature_width(self) -> int:
        """Width of the features that the projector reads."""
        if self.teacher_config is not None:
            return self.teacher_config["width"]
        semantic = self.tokenizer_config.semantic_dim
        pixel = 0 if self.strategy == "semantic" else self.tokenizer_config.pixel_dim
        return semantic + pixel
