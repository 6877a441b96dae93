"""Upstream's names in a published text-to-image model.

It is a Llama with a projector and two tables beside it; the image tokenizer is a file
of its own. The widths follow from the shapes; the schedule does not, so a model with
another number of tokens or levels than the published one needs a config.
Source: names in the state_dict of the published text-to-image code.
"""

import re
from collections.abc import Container, Mapping
from os import PathLike
from typing import Any

from torch import Tensor, nn

from tokenflow.checkpoint.files import SHOWN, check_complete, check_shapes

_MARK = "model.lvl_embed.weight"  # a name that no other published model has
_NAMES = (  # (upstream's, ours)
    ("model.embed_tokens.weight", "embed.weight"),
    ("model.mm_projector.", "projector."),
    ("model.lvl_embed.weight", "levels"),
    ("model.pos_1LC", "positions"),
    ("model.layers.", "llama.layers."),
    ("model.norm.", "llama.norm."),
    ("lm_head.", "head."),
)
_INSIDE = (
    (".self_attn.qknorm.", ".attention."),
    (".self_attn.", ".attention."),
    (".input_layernorm.", ".attention_norm."),
    (".post_attention_layernorm.", ".mlp_norm."),
)
_IGNORED = re.compile(
    r"(model\.)?image_token_(start|end)|model\.layers\.\d+\.self_attn\.rotary_emb\..*"
)
_SCALES = {(817, 10): [1, 2, 4, 6, 8, 10, 12, 14, 16]}  # (tokens, levels) -> schedule


def our_generation_name(key: str) -> str:
    """Return our name of upstream's parameter `key`."""
    for theirs, ours in _NAMES:
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
            break
    for theirs, ours in _INSIDE:
        key = key.replace(theirs, ours)
    return key


def upstream_generation_name(key: str) -> str:
    """Return upstream's name of our parameter `key`."""
    for theirs, ours in _NAMES:
        if key.startswith(ours):
            key = theirs + key.removeprefix(ours)
            break
    for part in ("query_norm", "key_norm"):
        key = key.replace(f".attention.{part}.", f".self_attn.qknorm.{part}.")
    for theirs, ours in _INSIDE[1:]:
        key = key.replace(ours, theirs)
    return key


def generation_to_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our state dict under upstream's names."""
    return {upstream_generation_name(key): value for key, value in state.items()}


def is_generation(names: Container[str]) -> bool:
    """Tell whether names are those of a published text-to-image model."""
    return _MARK in names


def recognise_generation(
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    source: str | PathLike = "the checkpoint",
) -> dict[str, Any]:
    """Return what to configure, from the shapes of published weights.

    Args:
        weights: Under upstream's names.
        config: The published config.json, for what shapes do not tell: the constants
            of norms and rotation, the size of the codebook.
        source: Said in messages.

    Raises:
        ValueError: They are no text-to-image model's, or its schedule is not known.
    """
    needed = (_MARK, "model.pos_1LC", "model.embed_tokens.weight", "lm_head.weight")
    needed += ("model.layers.0.self_attn.qknorm.key_norm.weight",)
    missing = [name for name in needed if name not in weights]
    if missing:
        raise ValueError(
            f"convert: {source} must be a text-to-image model; it has no {missing} "
            f"but, first of {len(weights)} names, {list(weights)[:SHOWN]}"
        )
    given = dict(config or {})
    layer = "model.layers.0."
    vocabulary, width = weights["lm_head.weight"].shape
    head = weights[f"{layer}self_attn.qknorm.key_norm.weight"].shape[0]
    tokens, levels = len(weights["model.pos_1LC"]), len(weights[_MARK])
    if (tokens, levels) not in _SCALES:
        raise ValueError(
            f"convert: {source} has {tokens} image tokens and {levels} levels, which "
            "is no published schedule; pass a config"
        )
    rotation = given.get("rope_parameters") or {"rope_theta": given.get("rope_theta")}
    theta = rotation.get("rope_theta") or 10000.0
    layers = [int(name.split(".")[2]) for name in weights if "model.layers." in name]
    entries = given.get("vq_codebook_size") or 32768
    return {
        "language": {
            "hidden_size": width,
            "intermediate_size": weights[f"{layer}mlp.gate_proj.weight"].shape[0],
            "num_hidden_layers": max(layers) + 1,
            "num_attention_heads": width // head,
            "num_key_value_heads": weights[f"{layer}self_attn.k_proj.weight"].shape[0]
            // head,
            "rms_norm_eps": given.get("rms_norm_eps", 1e-5),
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        },
        "scales": _SCALES[tokens, levels],
        "codebook_size": entries,
        "code_width": weights["model.mm_projector.0.weight"].shape[1],
        "image_start": vocabulary - entries,
        "pad_id": vocabulary - entries - 1,
        "text_length": 128,
        "embedded": weights["model.embed_tokens.weight"].shape[0],
    }


def fill_generation(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source: str | PathLike = "the checkpoint",
) -> None:
    """Put upstream's weights into our model, which may be on the meta device.

    Raises:
        ValueError: Names or shapes differ; the message has the first of them.
    """
    state = {
        our_generation_name(key): value
        for key, value in weights.items()
        if not _IGNORED.fullmatch(key)
    }
    expected = model.state_dict()
    theirs = upstream_generation_name
    check_complete(
        source,
        [theirs(key) for key in expected if key not in state],
        [theirs(key) for key in state if key not in expected],
    )
    check_shapes(
        source,
        [
            (theirs(key), state[key].shape, value.shape)
            for key, value in expected.items()
            if state[key].shape != value.shape
        ],
    )
    model.load_state_dict(state, assign=True)
