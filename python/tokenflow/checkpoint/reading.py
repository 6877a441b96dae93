"""Published files, opened safely.

They hold pickled dicts, one of them an argparse Namespace; they are read with an
allow-list, never with a free unpickler.
"""

import argparse
import json
import pickle
import re
import zipfile
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from tokenflow.checkpoint.files import SHOWN

CONTAINERS = ("ema", "model", "state_dict")  # the first present holds the weights


def read_upstream(source: str | PathLike) -> dict[str, Tensor]:
    """Read a published `.pt` file and return its weights under upstream's names.

    Accepts the containers `ema`, `model` and `state_dict` (the first present), a bare
    state dict, and names with `module.` or `_orig_mod.` in them. Nothing but tensors,
    plain containers and an argparse.Namespace is unpickled.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, asks for other code to be run, or holds
            no weights; the message names it.
    """
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"convert: there is no file {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(
                path,
                map_location="cpu",
                weights_only=True,
                mmap=zipfile.is_zipfile(path),  # optimizer states stay on the disk
            )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"convert: {path} must hold tensors and plain values only, and be whole; "
            f"refused to unpickle {_asked_for(error)}"
        ) from None
    except (RuntimeError, EOFError, KeyError, AttributeError, OSError) as error:
        raise ValueError(
            f"convert: {path} must be a whole PyTorch file; it is truncated or "
            f"something else ({_first_line(error)})"
        ) from None
    return _weights_in(content, path)


def read_published(source: str | PathLike) -> dict[str, Tensor]:
    """Read published weights: one file, or a folder with all files of a model.

    Safetensors are read as such, anything else by `read_upstream`. Of a folder with
    both, the safetensors.

    Raises:
        FileNotFoundError: There is neither file nor folder, or no weights in it.
        ValueError: A file is damaged, or shards that an index names are missing.
    """
    path, files = Path(source), _files_of(source)
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _read_file(file)
    for index in path.glob("*.index.json") if path.is_dir() else ():
        wanted = json.loads(index.read_text())["weight_map"]
        if files[0].name in wanted.values() and (absent := {*wanted} - {*weights}):
            gone = sorted({wanted[name] for name in absent})
            raise ValueError(
                f"convert: {path} must hold all its shards, {gone} are not there"
            )
    return weights


def published_names(source: str | PathLike) -> set[str]:
    """Return the names that `read_published` would find, without reading values.

    Raises:
        FileNotFoundError, ValueError: As `read_published`.
    """
    names: set[str] = set()
    for file in _files_of(source):
        names |= {*_read_file(file, values=False)}
    return names


def _files_of(source: str | PathLike) -> list[Path]:
    path = Path(source)
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("model*.safetensors"))
    files = files or sorted(path.glob("pytorch_model*.bin"))
    if not files:
        raise FileNotFoundError(
            f"convert: {path} must hold model*.safetensors or pytorch_model*.bin"
        )
    return files


def _read_file(path: Path, values: bool = True) -> dict[str, Any]:
    """Return one file's weights; their names alone where values are not wanted."""
    if path.suffix != ".safetensors":
        return read_upstream(path)  # mapped, so that values stay on the disk
    if not path.is_file():
        raise FileNotFoundError(f"convert: there is no file {path}")
    try:
        if values:
            return load_file(path)
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys())
    except SafetensorError as error:
        raise ValueError(
            f"convert: {path} must be whole safetensors ({error})"
        ) from None


def _asked_for(error: Exception) -> str:
    """Say what torch would not unpickle, without its advice to do so all the same."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found[1] if found else "it"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _weights_in(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        for name in CONTAINERS:
            if isinstance(content.get(name), dict):
                content = content[name]
                break
        weights = {
            _plain(key): value
            for key, value in content.items()
            if isinstance(key, str) and isinstance(value, Tensor)
        }
        if weights:
            return weights
    raise ValueError(
        f"convert: {path} must hold weights under one of {list(CONTAINERS)} or at the "
        f"top, found {_summary(content)}"
    )


def _plain(key: str) -> str:
    while key.startswith("module."):
        key = key.removeprefix("module.")
    key = key.replace("_orig_mod.", "")
    return key.removeprefix("module.")


def _summary(content: object) -> str:
    if isinstance(content, dict):
        return f"a dict with {[str(key) for key in list(content)[:SHOWN]]}"
    return f"a {type(content).__name__}"
