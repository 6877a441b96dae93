"""What a tokenizer is made of, as values: one config, five named presets.

Each network is described by the keyword arguments of its class, so a preset reads
like the table it comes from, and building a model is passing them on. `kind` picks the
semantic encoder once, when the model is built.
Source: TokenFlow, arXiv:2412.03069, tables 2 and 11; where the published code and
weights differ from them (CLIP B/16 instead of B/14, nine scales at 256 pixels instead
of ten), the code, because its weights are to be loaded.
"""

import copy
from typing import Any

from tokenflow._transformers import PreTrainedConfig
from tokenflow.tokenizer.scales import as_pairs, token_counts
from tokenflow_ext.nn.books import ESTIMATORS

SEMANTIC_KINDS = ("clip", "siglip", "vitamin")
PARTS = ("semantic_encoder", "semantic_decoder", "pixel_encoder", "pixel_decoder")

_PUBLISHED_PIXEL = {"width": 128, "multipliers": [1, 1, 2, 2, 4], "blocks": 2}
_ENHANCED_DECODER = {"width": 256, "multipliers": [1, 1, 2, 2, 4], "blocks": 4}
_MINI_PIXEL = {"width": 32, "multipliers": [1, 1, 2, 4], "blocks": 1, "groups": 8}
_SCALES_256 = [1, 2, 4, 6, 8, 10, 12, 14, 16]

_CLIP_B_224: dict[str, Any] = {
    "image_size": 224,
    "grid": 14,
    "scales": [1, 2, 4, 6, 8, 10, 12, 14],
    "semantic_encoder": {
        "kind": "clip",
        "width": 768,
        "layers": 12,
        "heads": 12,
        "patch": 16,
        "image_size": 224,
    },
    "semantic_decoder": {"width": 768, "grid": 14, "depth": 3, "heads": 12},
    "semantic_target": 512,
    "pixel_encoder": _PUBLISHED_PIXEL,
    "pixel_decoder": _PUBLISHED_PIXEL,
    "pixel_latent": 256,
    "codebook_size": 32768,
}
_PRESETS: dict[str, dict[str, Any]] = {
    "clip_b_224": _CLIP_B_224,
    "clip_b_256_enhanced": {
        **_CLIP_B_224,  # the position tables stay those of 224 and are interpolated
        "image_size": 256,
        "grid": 16,
        "scales": _SCALES_256,
        "pixel_decoder": _ENHANCED_DECODER,
    },
    "vitamin_xl_256": {
        **_CLIP_B_224,
        "image_size": 256,
        "grid": 16,
        "scales": _SCALES_256,
        "semantic_encoder": {
            "kind": "vitamin",
            "width": 1152,
            "stem_widths": [192, 384],
            "stem_depths": [2, 4],
            "layers": 32,
            "heads": 16,
        },
        "semantic_decoder": {"width": 1152, "grid": 16, "depth": 3, "heads": 12},
        "semantic_target": 1152,
    },
    "siglip_so400m_384": {
        **_CLIP_B_224,
        "image_size": 384,
        "grid": 27,
        "scales": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27],
        "semantic_encoder": {
            "kind": "siglip",
            "width": 1152,
            "layers": 27,
            "heads": 16,
            "mlp_width": 4304,
            "patch": 14,
            "image_size": 384,
        },
        "semantic_decoder": {"width": 1152, "grid": 27, "depth": 3, "heads": 12},
        "semantic_target": 1152,
    },
    "mini": {
        "image_size": 64,
        "grid": 8,
        "scales": [1, 2, 3, 4, 5, 6, 7, 8],
        "semantic_encoder": {
            "kind": "clip",
            "width": 96,
            "layers": 4,
            "heads": 4,
            "patch": 8,
            "image_size": 64,
        },
        "semantic_decoder": {"width": 96, "grid": 8, "depth": 1, "heads": 4},
        "semantic_target": 96,
        "pixel_encoder": _MINI_PIXEL,
        "pixel_decoder": _MINI_PIXEL,
        "pixel_latent": 64,
        "codebook_size": 4096,
        "semantic_dim": 16,
        "pixel_weight": 2.0,
    },
}
PRESETS = tuple(_PRESETS)


class TokenFlowConfig(PreTrainedConfig):
    """All numbers that define a TokenFlow tokenizer.

    Args:
        image_size: Side R of the pictures, in pixels.
        grid: Side of the final grid of features; one cell is R / grid pixels.
        scales: Side lengths (or height and width pairs) of the pyramid on the
            native grid, coarse to fine.
        semantic_encoder: `kind` ("clip", "siglip" or "vitamin") and the keyword
            arguments of that class in `tokenflow.tokenizer.semantic`.
        semantic_decoder: Keyword arguments of `semantic.SemanticDecoder`; `grid` is
            that of its position table.
        semantic_target: Width of the teacher's features, which the semantic decoder
            rebuilds.
        pixel_encoder: width, multipliers and blocks of `pixel.PixelEncoder`. Where
            image_size is not factor · grid (the SigLIP preset: 384 and 432), the
            pixel branch works on a picture resized to factor · grid.
        pixel_decoder: The same for `pixel.PixelDecoder`.
        pixel_latent: Channels between the pixel networks and their 1×1 convolutions.
        output_size: Side of the decoded picture, image_size when None.
        codebook_size: Entries K of the two books.
        semantic_dim: Width Ds of the semantic half of an entry. 0: there is no such
            half and no semantic encoder, and both decoders read the pixel half.
        pixel_dim: Width Dp of the pixel half, 0 likewise.
        pixel_weight: Weight of the pixel distance when entries are compared.
        normalize: Compare and look up entries as unit vectors (as published).
        commitment_weight: β of the commitment loss (0.25 in the paper and in the
            published training command).
        entropy_weight: Weight of the entropy loss, 0 as published.
        scale_drop: Probability that a training step leaves one scale out.
        estimator: How gradients pass the quantizer in training: "straight_through" (as
            published) or "rotation"; see `tokenflow_ext.nn.PyramidQuantizer`.
        pixel_gradient: Whether redrawn pictures teach encoders and books (as
            published), or the pixel decoder alone.

    Raises:
        ValueError: A value is out of its range, or the parts do not fit together.
    """

    model_type = "tokenflow_tokenizer"

    image_size: int = 64
    grid: int = 8
    scales: list | tuple = (1, 2, 3, 4, 6, 8)  # a list once built
    semantic_encoder: dict | None = None
    semantic_decoder: dict | None = None
    semantic_target: int = 96
    pixel_encoder: dict | None = None
    pixel_decoder: dict | None = None
    pixel_latent: int = 64
    output_size: int | None = None
    codebook_size: int = 4096
    semantic_dim: int = 32
    pixel_dim: int = 8
    pixel_weight: float = 1.0
    normalize: bool = True
    commitment_weight: float = 0.25
    entropy_weight: float = 0.0
    scale_drop: float = 0.1
    estimator: str = "straight_through"
    pixel_gradient: bool = True

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: D105
        for part in PARTS:  # what is not said is as in the smallest preset
            if getattr(self, part) is None:
                setattr(self, part, copy.deepcopy(_PRESETS["mini"][part]))
        _check(self)
        # as JSON has them, so that a config equals what its file gives back
        self.scales = [s if isinstance(s, int) else list(s) for s in self.scales]
        super().__post_init__(**kwargs)

    @classmethod
    def preset(
        cls, name: str, *, enhanced: bool | None = None, **changes: Any
    ) -> "TokenFlowConfig":
        """Return a named configuration, changed where asked.

        `clip_b_224` (TokenFlow-B), `clip_b_256_enhanced` (the published B file),
        `vitamin_xl_256` (TokenFlow-L), `siglip_so400m_384` (TokenFlow-XL), `mini`
        (ours, small enough to ship).

        Args:
            name: One of `PRESETS`.
            enhanced: Pixel decoder with doubled width and residual blocks (True),
                the plain one (False), or what the preset says (None).
            changes: Any field; a dict is merged into the part of that name, so
                `pixel_encoder={"width": 64}` changes nothing but the width.

        Raises:
            ValueError: There is no such preset, or the changes do not fit.
        """
        if name not in _PRESETS:
            raise ValueError(f"preset: must be one of {list(PRESETS)}, got {name!r}")
        values = copy.deepcopy(_PRESETS[name])
        if enhanced is not None:
            plain = values["pixel_encoder"]
            doubled = {"width": 2 * plain["width"], "blocks": 2 * plain["blocks"]}
            values["pixel_decoder"] = {**plain, **(doubled if enhanced else {})}
        for key, value in changes.items():
            merge = isinstance(value, dict) and isinstance(values.get(key), dict)
            values[key] = {**values[key], **value} if merge else value
        return cls(**values)

    @property
    def pixel_factor(self) -> int:
        """Pixels per grid cell in the pixel branch."""
        return 2 ** (len(self.pixel_encoder["multipliers"]) - 1)

    @property
    def num_tokens(self) -> int:
        """Tokens L of a picture of the native size."""
        return sum(token_counts(as_pairs(self.scales)))


def _check(config: TokenFlowConfig) -> None:
    pairs = as_pairs(config.scales)
    if max(max(pair) for pair in pairs) > config.grid:
        raise ValueError(
            f"TokenFlowConfig: scales must not exceed grid = {config.grid}, "
            f"got {config.scales}"
        )
    for name in (
        "image_size",
        "grid",
        "semantic_target",
        "pixel_latent",
        "codebook_size",
    ):
        if getattr(config, name) < 1:
            raise ValueError(
                f"TokenFlowConfig: {name} must be ≥ 1, got {getattr(config, name)}"
            )
    widths = config.semantic_dim, config.pixel_dim
    if min(widths) < 0 or max(widths) < 1:
        raise ValueError(
            "TokenFlowConfig: semantic_dim and pixel_dim must be ≥ 0, and one of them "
            f"≥ 1, got {widths[0]} and {widths[1]}"
        )
    for name in ("pixel_weight", "commitment_weight", "entropy_weight"):
        if not getattr(config, name) >= 0:
            raise ValueError(
                f"TokenFlowConfig: {name} must be ≥ 0, got {getattr(config, name)}"
            )
    if not 0 <= config.scale_drop <= 1:
        raise ValueError(
            f"TokenFlowConfig: scale_drop must be in [0, 1], got {config.scale_drop}"
        )
    if config.estimator not in ESTIMATORS:
        raise ValueError(
            f"TokenFlowConfig: estimator must be one of {list(ESTIMATORS)}, "
            f"got {config.estimator!r}"
        )
    kind = config.semantic_encoder.get("kind")
    if kind not in SEMANTIC_KINDS:
        raise ValueError(
            f"TokenFlowConfig: semantic_encoder['kind'] must be one of "
            f"{list(SEMANTIC_KINDS)}, got {kind!r}"
        )
    levels = [len(config.pixel_encoder["multipliers"])]
    levels.append(len(config.pixel_decoder["multipliers"]))
    if levels[0] != levels[1]:
        raise ValueError(
            "TokenFlowConfig: pixel_encoder and pixel_decoder must have as many "
            f"multipliers as each other, got {levels[0]} and {levels[1]}"
        )
