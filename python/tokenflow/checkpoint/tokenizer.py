"""The published tokenizers' parameter names, and ours.

For each part a short table of what is called differently there.
Source: the published training code; names in its state_dict.
"""

from collections.abc import Iterable, Mapping
from os import PathLike

import torch
from torch import Tensor, nn

from tokenflow.checkpoint.files import SHOWN, check_complete, check_shapes
from tokenflow.config import TokenFlowConfig
from tokenflow.tokenizer.transformer import (
    CLIP_MEAN,
    CLIP_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
)

Names = tuple[tuple[str, str], ...]  # (upstream's, ours)
_PARTS: Names = (
    ("encoder.", "pixel_encoder."),
    ("decoder.", "pixel_decoder."),
    ("encoder_vqkd.", "semantic_encoder."),
    ("decoder_vqkd.", "semantic_decoder."),
    ("encode_task_layer.", "semantic_head."),
    ("decode_task_layer.", "semantic_target_head."),
    ("scaling_layer.", "semantic_encoder.scaling."),
    ("quantize.embedding_vqkd.weight", "quantizer.semantic_book"),
    ("quantize.embedding_vqgan.weight", "quantizer.pixel_book"),
)
_INSIDE: dict[str, Names] = {
    "pixel_encoder.": ((".downsample.conv.", ".resize."),),
    "pixel_decoder.": ((".upsample.conv.", ".resize."),),
    "semantic_decoder.": ((".patch_embed.proj.", ".patch_embed."),),
}
_SEMANTIC: dict[str, Names] = {
    "clip": (
        (".transformer.resblocks.", ".blocks."),
        (".ln_1.", ".norm1."),
        (".ln_2.", ".norm2."),
        (".attn.in_proj_", ".attn.qkv."),
        (".attn.out_proj.", ".attn.proj."),
        (".mlp.c_fc.", ".mlp.fc1."),
        (".mlp.c_proj.", ".mlp.fc2."),
    ),
    "siglip": (
        (".vision_model.embeddings.patch_embedding.", ".patch_embedding."),
        (
            ".vision_model.embeddings.position_embedding.weight",
            ".position_embedding",
        ),
        (".vision_model.encoder.layers.", ".blocks."),
        (".vision_model.post_layernorm.", ".post_layernorm."),
        (".vision_model.head.", ".head."),
        (".self_attn.", ".attn."),
        (".layer_norm1.", ".norm1."),
        (".layer_norm2.", ".norm2."),
    ),
    "vitamin": (
        (".patch_embed.backbone.stem.", ".stem."),
        (".patch_embed.backbone.stages.", ".stages."),
        (".patch_embed.backbone.pool.", ".pool."),
    ),
}
_SHIFT, _SCALE = "semantic_encoder.scaling.shift", "semantic_encoder.scaling.scale"
_CONSTANTS: dict[str, dict[str, tuple[float, ...]]] = {
    "clip": {},
    "siglip": {_SHIFT: SIGLIP_MEAN, _SCALE: SIGLIP_STD},
    "vitamin": {_SHIFT: CLIP_MEAN, _SCALE: CLIP_STD},
}
_MARKS = {  # a name that only this semantic encoder has
    "clip": "encoder_vqkd.class_embedding",
    "siglip": "encoder_vqkd.vision_model.embeddings.patch_embedding.weight",
    "vitamin": "encoder_vqkd.patch_embed.backbone.stem.conv1.weight",
}
# (semantic encoder, width of the pixel decoder is doubled) -> preset
_RECOGNISED = {
    ("clip", False): "clip_b_224",
    ("clip", True): "clip_b_256_enhanced",
    ("vitamin", False): "vitamin_xl_256",
    ("vitamin", True): "vitamin_xl_256",
    ("siglip", False): "siglip_so400m_384",
    ("siglip", True): "siglip_so400m_384",
}
USAGE_KEY, USAGE_LENGTH = "quantize.codebook_used", 131072
_IGNORED = (  # upstream's records of training; no token depends on them
    USAGE_KEY,
    "quantize.embedding_vqkd.initted",
    "quantize.embedding_vqkd.cluster_size",
    "quantize.embedding_vqkd.embed_avg",
)


def our_name(key: str, kind: str) -> str:
    """Return our name of upstream's parameter `key`; `kind` is the semantic encoder."""
    for theirs, ours in _PARTS:
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
            for there, here in _names_inside(ours, kind):
                key = key.replace(there, here)
            return key
    return key


def upstream_name(key: str, kind: str) -> str:
    """Return upstream's name of our parameter `key`, the inverse of `our_name`."""
    for theirs, ours in sorted(_PARTS, key=lambda part: -len(part[1])):
        if key.startswith(ours):
            for there, here in _names_inside(ours, kind):
                key = key.replace(here, there)
            return theirs + key.removeprefix(ours)
    return key


def _names_inside(part: str, kind: str) -> Names:
    return _SEMANTIC[kind] if part == "semantic_encoder." else _INSIDE.get(part, ())


def to_upstream(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return our state dict under upstream's names, complete with its usage record."""
    weights = {upstream_name(key, kind): value for key, value in state.items()}
    book = state["quantizer.semantic_book"]
    weights[USAGE_KEY] = torch.zeros(USAGE_LENGTH, device=book.device)
    return weights


def recognise(
    weights: Mapping[str, Tensor], source: str | PathLike = "the checkpoint"
) -> TokenFlowConfig:
    """Return the configuration that published weights belong to, from their shapes.

    Raises:
        ValueError: They are no tokenizer's; the message names `source` and what is
            there instead.
    """
    kind = next((k for k, mark in _MARKS.items() if mark in weights), None)
    needed = ("decoder.conv_in.weight", "quantize.embedding_vqkd.weight")
    missing = [name for name in needed if name not in weights]
    if kind is None or missing:
        raise ValueError(
            f"convert: {source} must be a TokenFlow tokenizer; it has none of "
            f"{missing or list(_MARKS.values())} but, first of {len(weights)} names, "
            f"{list(weights)[:SHOWN]}"
        )
    plain = TokenFlowConfig.preset(_RECOGNISED[kind, False]).pixel_encoder
    widest = plain["width"] * plain["multipliers"][-1]
    enhanced = weights["decoder.conv_in.weight"].shape[0] == 2 * widest
    return TokenFlowConfig.preset(
        _RECOGNISED[kind, enhanced],
        enhanced=enhanced,
        codebook_size=weights["quantize.embedding_vqkd.weight"].shape[0],
    )


def fill(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    kind: str,
    source: str | PathLike = "the checkpoint",
) -> None:
    """Put upstream's weights into our tokenizer (which may be on the meta device).

    The frozen tail of SigLIP, which no token depends on, may be missing; it is then
    zero. So may the constants of the input scaling.

    Raises:
        ValueError: Names or shapes differ; the message has the first of them.
    """
    state = {
        our_name(key, kind): value
        for key, value in weights.items()
        if key not in _IGNORED
    }
    expected = model.state_dict()
    for key in expected:
        if key not in state and key in _CONSTANTS[kind]:
            state[key] = torch.tensor(_CONSTANTS[kind][key]).reshape(1, 3, 1, 1)
        elif key not in state and _is_tail(key, expected):
            state[key] = torch.zeros(expected[key].shape)
    missing = [upstream_name(key, kind) for key in expected if key not in state]
    unexpected = [upstream_name(key, kind) for key in state if key not in expected]
    check_complete(source, missing, unexpected)
    check_shapes(
        source,
        [
            (upstream_name(key, kind), state[key].shape, expected[key].shape)
            for key in expected
            if state[key].shape != expected[key].shape
        ],
    )
    state = {key: value.to(expected[key].dtype) for key, value in state.items()}
    model.load_state_dict(state, assign=True)


def _is_tail(key: str, state: Iterable[str]) -> bool:
    """Tell whether a parameter lies behind the layer that SigLIP's features leave."""
    head = ("semantic_encoder.head.", "semantic_encoder.post_layernorm.")
    if key.startswith(head):
        return True
    layers = [
        int(name.split(".")[2])
        for name in state
        if name.startswith("semantic_encoder.blocks.")
    ]
    has_tail = any(name.startswith(head[0]) for name in state)
    return has_tail and key.startswith(f"semantic_encoder.blocks.{max(layers)}.")
