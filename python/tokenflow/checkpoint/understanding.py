"""The published understanding models' files, names and settings, and ours.

A folder as LLaVA's code writes it: config.json of type `llava_qwen` or `llava_llama`,
weights in shards, the words' tokenizer. The language model is there as transformers
names it, the projector beside its layers; the image tokenizer comes in a file of its
own (`mm_vision_tower` is empty), or as `model.vision_tower.vision_tower.…`. Stage 1
leaves the projector alone in `mm_projector.bin`.
Source: the published understanding code; third parties' reports on its checkpoints.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenflow.checkpoint.files import check_complete, check_shapes
from tokenflow.checkpoint.generation import is_generation
from tokenflow.checkpoint.reading import (
    published_names,
    read_published,
    read_upstream,
)

MODEL_TYPES = {"llava_qwen": "qwen2", "llava_llama": "llama"}  # of transformers
_TOWER = "model.vision_tower.vision_tower."
_PROJECTOR = "model.mm_projector."
_WIDTH = "model.mm_projector.0.weight"
_WORDS = (("lm_head.", "language_model.lm_head."), ("model.", "language_model.model."))
_RECORDS = ("rotary_emb.inv_freq",)  # older files hold what follows from the config
_OTHER_SETTINGS = (  # of the training code, or of a class that is not ours
    *("mm_", "image_", "vq_", "tune_", "freeze_", "use_mm", "vision_", "unfreeze_"),
    *("architectures", "auto_map", "torch_dtype", "dtype", "transformers_version"),
    *("_name", "model_type", "tokenizer_"),
)
_TABLE = "language_model.model.embed_tokens.weight"
_OUTPUT = "language_model.lm_head.weight"


def our_understanding_name(key: str) -> str:
    """Return our name of upstream's parameter `key`, but for the tokenizer's."""
    if key.startswith(_PROJECTOR):
        return "projector." + key.removeprefix(_PROJECTOR)
    for theirs, ours in _WORDS:
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key


def upstream_understanding_name(key: str) -> str:
    """Return upstream's name of our parameter, the inverse of the former."""
    if key.startswith("projector."):
        return _PROJECTOR + key.removeprefix("projector.")
    for theirs, ours in _WORDS:
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return key


@dataclass(frozen=True)
class Llava:
    """A published understanding model, as its folder has it."""

    text: dict[str, Any]  # settings of the language model, with transformers' type
    resize: str  # how its pictures become square
    weights: dict[str, Tensor]  # of language model and projector, upstream's names
    tower: dict[str, Tensor]  # of the image tokenizer, as in a file of its own

    @property
    def feature_width(self) -> int | None:
        """Width of the features that its projector reads."""
        weight = self.weights.get(_WIDTH)
        return None if weight is None else weight.shape[-1]


def is_llava(source: str | PathLike) -> bool:
    """Tell whether this is a folder of a published understanding model."""
    folder = Path(source)
    return (
        (folder / "config.json").is_file()
        and _settings(folder).get("model_type") in MODEL_TYPES
        and not is_generation(published_names(folder))  # may be of the same type
    )


def _settings(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"convert: {folder / 'config.json'} must be a configuration in JSON "
            f"({error})"
        ) from None


def read_llava(source: str | PathLike) -> Llava:
    """Read a published understanding model's folder.

    Raises:
        FileNotFoundError: There are no weights.
        ValueError: It is no such folder, or a file of it is damaged.
    """
    folder = Path(source)
    settings = _settings(folder)
    kind = settings.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(
            f"convert: {folder} must be of a type in {list(MODEL_TYPES)}, got {kind!r}"
        )
    projector = settings.get("mm_projector_type", "mlp2x_gelu")
    if projector != "mlp2x_gelu":
        raise ValueError(
            f"convert: {folder} must have mm_projector_type mlp2x_gelu, "
            f"got {projector!r}"
        )
    found = read_published(folder)
    text = {
        key: value
        for key, value in settings.items()
        if not key.startswith(_OTHER_SETTINGS)
    }
    ratio = settings.get("image_aspect_ratio")
    return Llava(
        text={**text, "model_type": MODEL_TYPES[kind]},
        resize="pad" if ratio == "pad" else "squash",
        weights={
            key: value
            for key, value in found.items()
            if not key.startswith(_TOWER) and not key.endswith(_RECORDS)
        },
        tower={
            key.removeprefix(_TOWER): value
            for key, value in found.items()
            if key.startswith(_TOWER)
        },
    )


def read_projector(source: str | PathLike) -> dict[str, Tensor]:
    """Read stage 1's `mm_projector.bin`: weights under upstream's names.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or holds no projector.
    """
    found = {
        _PROJECTOR + key.partition("mm_projector.")[2]: value
        for key, value in read_upstream(source).items()
        if "mm_projector." in key
    }
    if not found:
        raise ValueError(
            f"convert: {source} must hold a projector (names with 'mm_projector.'), "
            "found none"
        )
    return found


def understanding_state(
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    source: str | PathLike,
    *,
    tied: bool = False,
) -> dict[str, Tensor]:
    """Return upstream's weights under our names, as many and as large as expected.

    Args:
        weights: Under upstream's names.
        expected: Our state dict, or a part of it, without the image tokenizer.
        source: Named in messages.
        tied: The output shares the table of words and need not be there.

    Raises:
        ValueError: Names or shapes differ; the message has the first of them.
    """
    state = {our_understanding_name(key): value for key, value in weights.items()}
    if tied and _TABLE in state:
        state.setdefault(_OUTPUT, state[_TABLE])
    name = upstream_understanding_name
    check_complete(
        source,
        [name(key) for key in expected if key not in state],
        [name(key) for key in state if key not in expected],
    )
    check_shapes(
        source,
        [
            (name(key), state[key].shape, expected[key].shape)
            for key in expected
            if state[key].shape != expected[key].shape
        ],
    )
    return state
