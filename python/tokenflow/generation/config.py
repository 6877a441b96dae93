"""What a generation model is made of, as values.

The language model is described by the keyword arguments of `transformers`' Llama
configuration, the pictures by the three facts that positions and projector depend on:
the schedule, the number of entries, the width of one. One vocabulary holds both: ids
below `image_start` are text, id `image_start` + k is entry k.
Source: the published text-to-image code; sizes in its released model.
"""

import copy
from typing import Any

from tokenflow._transformers import PreTrainedConfig
from tokenflow.generation import sampling
from tokenflow.generation.places import PLACES
from tokenflow.tokenizer.scales import as_pairs, token_counts

_SAMPLING = {
    "guidance_scale": 7.5,
    "refinement": [list(look) for look in sampling.THREE_PASSES],
}
_LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
}
_MINI = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "rms_norm_eps": 1e-5,
}
_PRESETS: dict[str, dict[str, Any]] = {
    "llama_7b_256": {
        "language": _LLAMA_7B,
        "scales": [1, 2, 4, 6, 8, 10, 12, 14, 16],
        "codebook_size": 32768,
        "code_width": 40,
        "image_start": 32001,
        "pad_id": 32000,
        "text_length": 128,
        "embedded": 64769,
    },
    "mini": {
        "language": _MINI,
        "scales": [1, 2, 3, 4, 5, 6, 7, 8],
        "codebook_size": 4096,
        "code_width": 24,
        "image_start": 512,
        "pad_id": 0,
        "text_length": 32,
        "image_tokenizer": "mini",
        # the paper's k, of 32768 entries, as shares of these
        "sampling": {"refinement": [[150, 0.8], [13, 0.8], [1, 0.0]]},
    },
}
PRESETS = tuple(_PRESETS)


class TokenFlowGenerationConfig(PreTrainedConfig):
    """All numbers that define a generation model.

    Args:
        language: Keyword arguments of `transformers.LlamaConfig`; the vocabulary
            follows from the fields below.
        scales: The schedule of the image tokenizer, coarse to fine. Where the first
            has several tokens, they are drawn one by one; see `inputs`.
        codebook_size: Entries K of its books.
        code_width: Width Ds + Dp of one entry.
        image_start: Id of entry 0; everything below is text.
        pad_id: Text id that fills a prompt on the left and is never looked at.
        text_length: Text positions T; longer prompts are cut, shorter ones padded.
        embedded: Rows of the text embedding, image_start when None. The published
            model has rows for image ids too, which nothing reads.
        qk_norm_eps: Of the norms of queries and keys.
        places: What queries and keys are turned by: "sequence", numbers of positions,
            as published; or "grid", rows and columns in the picture, with which a new
            model may learn sooner. See `generation.places`.
        branch: What the weights of the norms behind attention and MLP begin with; 1 as
            published. With less, a layer begins near what it was given, and a new model
            learns sooner.
        inputs: How large the rows of words and levels, and what becomes of entries,
            begin, as a multiple of what is published; larger ones are told apart
            sooner.
        image_tokenizer: Name or hub id of the tokenizer, or a folder inside this
            model's; None where it is attached by hand.
        fingerprint: Of the tokenizer that the model was trained with.
        negative_prompt: What guidance leads away from unless `generate` is told.
        sampling: `guidance_scale` and `refinement` of `generate` unless it is told; the
            paper's where one is left out.

    Raises:
        ValueError: A value is out of its range.
    """

    model_type = "tokenflow_generation"

    language: dict | None = None
    scales: list | tuple = (1, 2, 3, 4, 5, 6, 7, 8)  # a list once built
    codebook_size: int = 4096
    code_width: int = 24
    image_start: int = 512
    pad_id: int = 0
    text_length: int = 32
    embedded: int | None = None
    qk_norm_eps: float = 1e-6
    places: str = "sequence"
    branch: float = 1.0
    inputs: float = 1.0
    image_tokenizer: str | None = None
    fingerprint: str | None = None
    negative_prompt: str = ""
    sampling: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: D105
        self.language = {**_MINI, **(self.language or {})}
        as_pairs(self.scales)  # raises where they are none
        self.embedded = self.image_start if self.embedded is None else self.embedded
        self.scales = [s if isinstance(s, int) else list(s) for s in self.scales]
        self.sampling = {**_SAMPLING, **(self.sampling or {})}
        _check(self)
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "TokenFlowGenerationConfig":
        """Return a named configuration, changed where asked.

        `llama_7b_256` (as published: Llama-2-7B on `clip_b_256_enhanced`), `mini`.

        Args:
            name: One of `PRESETS`.
            changes: Any field; `language` is merged into the preset's.

        Raises:
            ValueError: There is no such preset, or the changes do not fit.
        """
        if name not in _PRESETS:
            raise ValueError(f"preset: must be one of {list(PRESETS)}, got {name!r}")
        values = copy.deepcopy(_PRESETS[name])
        values["language"] |= changes.pop("language", {})
        return cls(**{**values, **changes})

    @property
    def num_tokens(self) -> int:
        """Tokens N of a picture."""
        return sum(token_counts(as_pairs(self.scales)))

    @property
    def vocabulary(self) -> int:
        """Text ids and image ids together."""
        return self.image_start + self.codebook_size


def _check(config: TokenFlowGenerationConfig) -> None:
    if config.sampling.keys() != _SAMPLING.keys():
        raise ValueError(
            f"TokenFlowGenerationConfig: sampling must have only {list(_SAMPLING)}, "
            f"got {list(config.sampling)}"
        )
    try:
        sampling.check(**config.sampling)
    except ValueError as error:
        words = str(error).removeprefix("generate: ")
        raise ValueError(f"TokenFlowGenerationConfig: sampling: {words}") from None
    for name in ("codebook_size", "code_width", "image_start", "text_length"):
        if getattr(config, name) < 1:
            raise ValueError(
                f"TokenFlowGenerationConfig: {name} must be ≥ 1, "
                f"got {getattr(config, name)}"
            )
    if config.embedded < config.image_start:
        raise ValueError(
            "TokenFlowGenerationConfig: embedded must be ≥ image_start = "
            f"{config.image_start}, got {config.embedded}"
        )
    if not 0 <= config.pad_id < config.image_start:
        raise ValueError(
            "TokenFlowGenerationConfig: pad_id must be a text id, in "
            f"[0, {config.image_start}), got {config.pad_id}"
        )
    width, heads = (
        config.language[name] for name in ("hidden_size", "num_attention_heads")
    )
    if config.places not in PLACES:
        raise ValueError(
            f"TokenFlowGenerationConfig: places must be one of {list(PLACES)}, "
            f"got {config.places!r}"
        )
    if width % heads:
        raise ValueError(
            "TokenFlowGenerationConfig: language['hidden_size'] must be a multiple of "
            f"its {heads} attention heads, got {width}"
        )
    if config.places == "grid" and width // heads % 4:
        raise ValueError(
            "TokenFlowGenerationConfig: with places 'grid' a head's width must be a "
            f"multiple of 4, pairs of rows and of columns, got {width // heads}"
        )
