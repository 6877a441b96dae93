"""`.tok` files: the tokens of one picture on disk.

A safetensors file with one tensor, `indices` [L]: uint16 where the codebook allows it,
else int32. Its metadata says how to read them: version of the format, the schedule,
size of the codebook and of the picture, and the fingerprint of the model whose books
the indices point into, so that another model's books are never looked up by mistake.
Source: ours.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from tokenflow._files import writing
from tokenflow.tokenizer.processing import MAX_PIXELS
from tokenflow.tokenizer.scales import Scales, as_pairs, token_counts

SUFFIX = ".tok"
FORMAT, VERSION = "tokenflow-tok", "1"


@dataclass(frozen=True)
class Tokens:
    """What a `.tok` file holds."""

    indices: Tensor  # [L] int64, scale after scale, each row by row
    scales: Scales  # (height, width) of each, coarse to fine
    codebook_size: int
    fingerprint: str  # of the model that made them
    size: tuple[int, int]  # (height, width) of the picture in pixels, as encoded

    def __post_init__(self) -> None:  # noqa: D105
        tokens = sum(token_counts(self.scales))
        if list(self.indices.shape) != [tokens]:
            raise ValueError(
                f"Tokens: indices must be [{tokens}] for scales {list(self.scales)}, "
                f"got {list(self.indices.shape)}"
            )
        if min(self.size) < 1 or self.size[0] * self.size[1] > MAX_PIXELS:
            raise ValueError(
                f"Tokens: size must be positive and at most {MAX_PIXELS:,} pixels, "
                f"got {list(self.size)}"
            )
        if self.indices.is_floating_point():
            raise ValueError(
                f"Tokens: indices must be integers, got {self.indices.dtype}"
            )
        low, high = (int(x) for x in self.indices.aminmax())
        if low < -1 or high >= self.codebook_size:
            raise ValueError(
                f"Tokens: indices must be in [0, {self.codebook_size}) (or -1, which "
                f"stands for no entry), got {low} to {high}"
            )

    def check_model(self, fingerprint: str, codebook_size: int) -> None:
        """Raise ValueError, with both hashes, unless these are that model's tokens."""
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"the tokens were made with model {self.fingerprint} and mean nothing "
                f"to this one, {fingerprint}; name the model they were made with"
            )
        if codebook_size != self.codebook_size:
            raise ValueError(
                f"the tokens must be of a codebook of {codebook_size} entries as their "
                f"model's, got {self.codebook_size}; the file is damaged"
            )


def save(path: str | PathLike, tokens: Tokens) -> None:
    """Write a `.tok` file, whole or not at all. The folder is made if need be."""
    narrow = tokens.codebook_size <= 2**16 and bool((tokens.indices >= 0).all())
    dtype = torch.uint16 if narrow else torch.int32
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "scales": json.dumps(tokens.scales),
        "codebook_size": str(tokens.codebook_size),
        "model": tokens.fingerprint,
        "size": json.dumps(tokens.size),
    }
    content = to_bytes({"indices": tokens.indices.cpu().to(dtype)}, metadata)
    with writing(Path(path)) as beside:
        beside.write_bytes(content)


def load(path: str | PathLike) -> Tokens:
    """Read a `.tok` file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no `.tok` file, is truncated, contradicts itself, or is of a
            newer version than this code knows.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(metadata, path)
            indices = file.get_tensor("indices")
    except SafetensorError as error:
        raise ValueError(
            f"{path} must be a whole {SUFFIX} file; it is truncated or something else "
            f"({error})"
        ) from None
    try:
        return _read(metadata, indices)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path} must agree with its own metadata; it is damaged ({reason})"
        ) from None


def _check_format(metadata: Mapping[str, str], path: Path) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} must be a {SUFFIX} file written by tokenflow; it is a safetensors "
            f"file of another kind (metadata {sorted(metadata)})"
        )
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"{path} must be of format version {VERSION}, got "
            f"{metadata.get('version')}; a newer tokenflow-ext reads it"
        )


def _read(metadata: Mapping[str, str], indices: Tensor) -> Tokens:
    height, width = json.loads(metadata["size"])
    return Tokens(
        indices=indices if indices.is_floating_point() else indices.long(),
        scales=as_pairs(json.loads(metadata["scales"])),
        codebook_size=int(metadata["codebook_size"]),
        fingerprint=metadata["model"],
        size=(height, width),
    )
