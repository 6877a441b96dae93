"""Published vision towers, read into our own encoders.

CLIP and SigLIP come as Hugging Face folders, ViTamin as timm or open_clip wrote it;
OpenAI's names of CLIP's weights are known too. Here the tower is recognised by its
names, its sizes are read off the shapes, and every weight gets the name it has in our
encoder. No model library is needed for it.
Sources: the layouts that transformers, timm and open_clip write; their encoders are
`tokenflow.tokenizer.semantic` and `tokenflow.tokenizer.vitamin`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenflow import checkpoint
from tokenflow.tokenizer.model_files import Files, Reader

# A name that only this layout has, what may stand before it, and the tower's kind.
_LAYOUTS = (
    ("embeddings.class_embedding", ("vision_model.", ""), "clip", "hugging face"),
    ("embeddings.patch_embedding.bias", ("vision_model.", ""), "siglip", "published"),
    (
        "patch_embed.backbone.stem.conv1.weight",
        ("visual.trunk.", "trunk.", ""),
        "vitamin",
        "published",
    ),
    ("class_embedding", ("visual.", ""), "clip", "published"),
)
_CLIP_OF_HUGGING_FACE = (
    (r"^embeddings\.class_embedding$", "class_embedding"),
    (r"^embeddings\.patch_embedding\.", "conv1."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^pre_layrnorm\.", "ln_pre."),
    (r"^post_layernorm\.", "ln_post."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm([12])\.", r".norm\1."),
)
_NOT_THE_TOWER = re.compile(r"(.*\.)?position_ids|fc_norm\..*|(trunk\.)?head\.proj\..*")
_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of published widths, if not said
_PROJECTIONS = ("visual_projection.weight", "visual.proj", "proj")


@dataclass(frozen=True)
class Tower:
    """A vision tower under our names."""

    kind: str  # of `semantic.SEMANTIC_ENCODERS`
    arguments: dict[str, Any]  # of that class
    weights: dict[str, Tensor]  # its state dict, but for the scaling of pictures
    projection: Tensor | None = None  # [out, width]: CLIP's, behind the tower


def read(files: Files, kind: str | None = None) -> Tower:
    """Read the vision tower out of a model's files.

    Args:
        files: See `model_files.find`.
        kind: "clip", "siglip" or "vitamin", where it is known; what is found must
            then be one.

    Raises:
        FileNotFoundError: A shard is missing.
        ValueError: There is no tower of a known layout, it is of another kind, or its
            configuration and its shapes contradict each other.
    """
    reader = Reader(files)
    names = reader.names()
    found, prefix, layout = _recognise(names, files.source)
    if kind not in (None, found):
        raise ValueError(
            f"load_teacher: {files.source} must be a {kind} tower, its weights are "
            f"those of a {found} tower"
        )
    weights = {
        name.removeprefix(prefix): reader[name]
        for name in names
        if name.startswith(prefix) and _belongs(name, prefix)
    }
    if layout == "hugging face":
        weights = _packed({_clip_name(k): v for k, v in weights.items()})
    else:
        weights = {_our_name(k, found): v for k, v in weights.items()}
    projection = None
    if found == "clip":
        name = next((n for n in _PROJECTIONS if n in names), None)
        if name is not None:
            projection = reader[name]
            projection = projection if name == _PROJECTIONS[0] else projection.t()
    arguments = _ARGUMENTS[found](weights, _Facts(files, found))
    return Tower(found, arguments, weights, projection)


def _recognise(names: Iterable[str], source: str) -> tuple[str, str, str]:
    names = list(names)
    for mark, prefixes, kind, layout in _LAYOUTS:
        for prefix in prefixes:
            if prefix + mark in names:
                return kind, prefix, layout
    raise ValueError(
        f"load_teacher: {source} must hold a CLIP, SigLIP or ViTamin vision tower; of "
        f"its {len(names)} weights the first are {names[: checkpoint.SHOWN]}"
    )


def _belongs(name: str, prefix: str) -> bool:
    name = name.removeprefix(prefix)
    outside = ("text_model.", "logit_", *_PROJECTIONS)
    return not name.startswith(outside) and not _NOT_THE_TOWER.fullmatch(name)


def _clip_name(name: str) -> str:
    for theirs, ours in _CLIP_OF_HUGGING_FACE:
        name = re.sub(theirs, ours, name)
    return name


def _our_name(name: str, kind: str) -> str:
    inner = "vision_model." if kind == "siglip" else ""
    ours = checkpoint.our_name(f"encoder_vqkd.{inner}{name}", kind)
    return ours.removeprefix("semantic_encoder.")


def _packed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with the matrices of query, key and value as one."""
    packed = {}
    for name, value in weights.items():
        first = re.fullmatch(r"(.*\.attn\.)q_proj(\.\w+)", name)
        if first:
            parts = [f"{first[1]}{letter}_proj{first[2]}" for letter in "qkv"]
            if all(part in weights for part in parts):
                stacked = torch.cat([weights[part] for part in parts])
                packed[f"{first[1]}qkv{first[2]}"] = stacked
        elif not re.search(r"\.attn\.[kv]_proj\.", name):
            packed[name] = value
    return packed


class _Facts:
    """What a configuration says of the tower, asked one word at a time."""

    def __init__(self, files: Files, kind: str) -> None:
        config = files.config
        self.source, self.kind = files.source, kind
        self.told = bool(config)
        self.values = {**config, **config.get("vision_config", {})}
        self.values |= config.get("model_args") or {}

    def agree(self, name: str, found: Any) -> Any:
        """Return what the shapes say, unless the configuration says otherwise."""
        said = self.values.get(name, found)
        if said != found:
            raise ValueError(
                f"load_teacher: {self.source}: config.json says {name} = {said}, its "
                f"weights have {found}"
            )
        return found

    def must_be(self, name: str, expected: tuple[Any, ...]) -> None:
        """Raise ValueError if another value is given than our encoder computes."""
        said = self.values.get(name, expected[0])
        if said not in expected:
            raise ValueError(
                f"load_teacher: {self.source}: {name} must be one of "
                f"{list(expected)} for a {self.kind} teacher, config.json says {said!r}"
            )

    def heads(self, names: tuple[str, ...], width: int) -> int:
        """Return the number of heads, which no shape tells."""
        for name in names:
            if name in self.values:
                return self.values[name]
        if width in _HEADS:
            return _HEADS[width]
        raise ValueError(
            f"load_teacher: {self.source}: a config.json must say {names[0]}; no "
            f"published {self.kind} tower has a width of {width}"
        )

    def image_size(self, rows: int, patch: int) -> int:
        """Return the side of the picture whose patches a table of positions holds."""
        side = round(rows**0.5)
        size = self.values.get("image_size", side * patch)
        if side * side != rows or size // patch != side:
            raise ValueError(
                f"load_teacher: {self.source}: {rows} positions must be the square of "
                f"image_size // patch_size, config.json says {size} and {patch}"
            )
        return size


def _need(weights: Mapping[str, Tensor], name: str, facts: _Facts) -> Tensor:
    if name not in weights:
        checkpoint.check_complete(f"load_teacher: {facts.source}", [name], [])
    return weights[name]


def _count(weights: Mapping[str, Tensor], start: str) -> int:
    found = (re.match(rf"{re.escape(start)}\.(\d+)\.", name) for name in weights)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _clip(weights: Mapping[str, Tensor], facts: _Facts) -> dict[str, Any]:
    width, _, patch, _ = _need(weights, "conv1.weight", facts).shape
    rows = _need(weights, "positional_embedding", facts).shape[0] - 1
    hidden = _need(weights, "blocks.0.mlp.fc1.weight", facts).shape[0]
    facts.must_be("hidden_act", ("quick_gelu",))
    facts.must_be("layer_norm_eps", (1e-5,))
    if facts.agree("intermediate_size", hidden) != 4 * width:
        raise ValueError(
            f"load_teacher: {facts.source}: a clip teacher's MLPs must be four times "
            f"as wide as its tokens, got {hidden} at a width of {width}"
        )
    return {
        "width": facts.agree("hidden_size", width),
        "layers": facts.agree("num_hidden_layers", _count(weights, "blocks")),
        "heads": facts.heads(("num_attention_heads",), width),
        "patch": facts.agree("patch_size", patch),
        "image_size": facts.image_size(rows, patch),
    }


def _siglip(weights: Mapping[str, Tensor], facts: _Facts) -> dict[str, Any]:
    width, _, patch, _ = _need(weights, "patch_embedding.weight", facts).shape
    hidden = _need(weights, "blocks.0.mlp.fc1.weight", facts).shape[0]
    rows = _need(weights, "position_embedding", facts).shape[0]
    facts.must_be("hidden_act", ("gelu_pytorch_tanh",))
    facts.must_be("layer_norm_eps", (1e-6,))
    return {
        "width": facts.agree("hidden_size", width),
        "layers": facts.agree("num_hidden_layers", _count(weights, "blocks")),
        "heads": facts.heads(("num_attention_heads",), width),
        "mlp_width": facts.agree("intermediate_size", hidden),
        "patch": facts.agree("patch_size", patch),
        "image_size": facts.image_size(rows, patch),
    }


def _vitamin(weights: Mapping[str, Tensor], facts: _Facts) -> dict[str, Any]:
    width = _need(weights, "pool.proj.weight", facts).shape[0]
    stages = ("stages.0", "stages.1")
    last = (f"{stage}.0.conv3_1x1.weight" for stage in stages)
    return {
        "width": facts.agree("embed_dim", width),
        "stem_widths": [_need(weights, name, facts).shape[0] for name in last],
        "stem_depths": [_count(weights, stage) for stage in stages],
        "layers": facts.agree("depth", _count(weights, "blocks")),
        "heads": facts.heads(("num_heads",), width),
        "mlp_width": _need(weights, "blocks.0.mlp.w0.weight", facts).shape[0],
    }


_ARGUMENTS = {"clip": _clip, "siglip": _siglip, "vitamin": _vitamin}


def check_weights(
    owner: str, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Raise ValueError, with the first names, unless names and shapes are the same."""
    checkpoint.check_complete(
        owner, expected.keys() - weights.keys(), weights.keys() - expected.keys()
    )
    checkpoint.check_shapes(
        owner,
        [
            (name, weights[name].shape, expected[name].shape)
            for name in expected
            if weights[name].shape != expected[name].shape
        ],
    )
