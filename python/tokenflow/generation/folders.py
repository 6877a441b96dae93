"""A generation model on disk: its weights, and the two tokenizers beside them.

A folder holds config.json and safetensors, the files of a text tokenizer, and either
the name of an image tokenizer (in the config) or a folder `image_tokenizer`.
"""

import json
import os
from collections.abc import Callable
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tokenflow import checkpoint
from tokenflow._transformers import quiet
from tokenflow.generation.config import TokenFlowGenerationConfig
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.scales import as_pairs

if TYPE_CHECKING:
    from tokenflow.generation.model import TokenFlowForGeneration

INSIDE = "image_tokenizer"  # folder of a tokenizer that has no name


def find(name: str | os.PathLike, kind: type[TokenFlowGenerationConfig]) -> Path | str:
    """Return the folder of a shipped name or a path, or a hub id as it is.

    Args:
        name: What a user calls the model.
        kind: Of its config.

    Raises:
        OSError: It is none of the three.
        ValueError: It is a folder of another kind of model.
    """
    wanted = kind.model_type.removeprefix("tokenflow_")
    place = checkpoint.local_folder(name, wanted)
    if place is not None:
        _check_kind(place, wanted)
    return place or fspath(name)


def _check_kind(place: Path, wanted: str) -> None:
    file = place / "config.json"
    if file.is_file():
        kind = json.loads(file.read_text()).get("model_type")
        if kind != f"tokenflow_{wanted}":
            raise ValueError(
                f"{place}: must be a {wanted} model (tokenflow_{wanted}), its config "
                f"says {kind!r}"
            )


def text_tokenizer(place: Path | str, **kwargs: Any) -> Any:
    """Return the text tokenizer of a model; None where its folder has none."""
    from transformers import AutoTokenizer

    if isinstance(place, Path) and not (place / "tokenizer_config.json").is_file():
        return None
    return AutoTokenizer.from_pretrained(place, **kwargs)


def image_tokenizer(
    place: Path | str, config: TokenFlowGenerationConfig, **kwargs: Any
) -> TokenFlowTokenizer | None:
    """Return the image tokenizer that a config names; None where it names none."""
    name = config.image_tokenizer
    if name is None:
        return None
    if name == INSIDE and isinstance(place, Path):
        return TokenFlowTokenizer.from_pretrained(place / INSIDE, **kwargs)
    if name == INSIDE:
        return TokenFlowTokenizer.from_pretrained(place, subfolder=INSIDE, **kwargs)
    kwargs.pop("revision", None)  # of another repository
    return TokenFlowTokenizer.from_pretrained(name, **kwargs)


def check_fit(config: TokenFlowGenerationConfig, tokenizer: TokenFlowTokenizer) -> None:
    """Raise ValueError unless a tokenizer's tokens are those a model was made for."""
    its = tokenizer.config
    for name, wanted, found in (
        ("scales", as_pairs(config.scales), tokenizer.scales),
        ("codebook_size", config.codebook_size, its.codebook_size),
        ("code_width", config.code_width, its.semantic_dim + its.pixel_dim),
    ):
        if wanted != found:
            raise ValueError(
                f"attach: the image tokenizer must have {name} = {wanted} as the "
                f"model, it has {found}"
            )
    if config.fingerprint and tokenizer.fingerprint() != config.fingerprint:
        raise ValueError(
            "attach: the image tokenizer must be the one of the model's training, "
            f"{config.fingerprint}, got {tokenizer.fingerprint()}"
        )


def save(
    model: "TokenFlowForGeneration",
    write: Callable[..., Any],
    folder: str | os.PathLike,
    *args: Any,
    **kwargs: Any,
) -> None:
    """Write a model with transformers' `save_pretrained`, and its tokenizers."""
    config = model.config
    if model._attached:
        tokenizer = model.image_tokenizer
        config.fingerprint = tokenizer.fingerprint()
        config.image_tokenizer = config.image_tokenizer or INSIDE
        if config.image_tokenizer == INSIDE:
            tokenizer.save_pretrained(Path(folder) / INSIDE)
    if kwargs.get("push_to_hub"):  # would be named after the folder on the way
        kwargs.setdefault("repo_id", Path(folder).resolve().name)
    with checkpoint.replacing(folder) as made, quiet():
        write(made, *args, **kwargs)
        if model.text_tokenizer is not None:
            model.text_tokenizer.save_pretrained(made)


def from_upstream(
    cls: type["TokenFlowForGeneration"],
    source: str | os.PathLike,
    config: TokenFlowGenerationConfig | None = None,
) -> "TokenFlowForGeneration":
    """Build a model of published weights; see the method of that name."""
    weights = checkpoint.read_published(source)
    file = Path(source) / "config.json"
    if config is None:
        published = json.loads(file.read_text()) if file.is_file() else None
        sizes = checkpoint.recognise_generation(weights, published, source)
        config = cls.config_class(**sizes)
    with torch.device("meta"):
        model = cls(config)
    checkpoint.fill_generation(model, weights, source)
    if Path(source).is_dir():
        model.text_tokenizer = text_tokenizer(Path(source))
    return model.eval()
