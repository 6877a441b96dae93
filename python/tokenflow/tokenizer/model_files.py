"""The files of a model: found on this disk or on the hub, read a tensor at a time.

A folder holds a configuration and weights, as safetensors (whole or in shards) or as
a `.bin`, which is read with the allow-list of `checkpoint.read_upstream`. What a model
on the hub has beside the tower that is wanted is not read into memory.
Source: the names that transformers and open_clip give to files.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenflow import checkpoint

INDEX = "model.safetensors.index.json"
WEIGHTS = (  # the first that is there is read
    "model.safetensors",
    INDEX,
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
CONFIGS = ("config.json", "open_clip_config.json")


@dataclass(frozen=True)
class Files:
    """Where a model lies, and what its config says (nothing, if it has none)."""

    source: str  # as it was asked for; errors name it
    config: dict[str, Any]
    weights: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The folder on this disk."""
        return self.weights[0].parent


def find(source: str | os.PathLike, revision: str | None = None) -> Files:
    """Find a model's files: a shipped one's, a folder's, a file of weights, a hub's.

    From the hub only the configuration and one set of weights are fetched, into
    huggingface_hub's own cache; with HF_HUB_OFFLINE set they must be there already.

    Raises:
        OSError: There is no such folder, file or id, it cannot be reached, or no
            weights are in it.
    """
    path = checkpoint.shipped(source) or Path(source)
    if path.is_file():
        return Files(str(source), _config(path.parent), (path,))
    if path.is_dir():
        for name in WEIGHTS:
            if (path / name).is_file():
                return Files(str(source), _config(path), _shards(path / name))
        raise FileNotFoundError(
            f"load_teacher: {source} must hold weights ({', '.join(WEIGHTS)}), found "
            f"{sorted(file.name for file in path.iterdir())[: checkpoint.SHOWN]}"
        )
    name = str(source)
    if name.count("/") == 1 and name[0] not in "./~":
        return _from_hub(name, revision)
    raise FileNotFoundError(
        f"load_teacher: source must be a shipped name, a folder, a file or the id of a "
        f"hub (owner/name), got {name!r}"
    )


def _config(folder: Path) -> dict[str, Any]:
    for name in CONFIGS:
        if (folder / name).is_file():
            try:
                return json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(
                    f"load_teacher: {folder / name} must be JSON ({error})"
                ) from None
    return {}


def _shards(path: Path) -> tuple[Path, ...]:
    if path.name != INDEX:
        return (path,)
    names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
    return tuple(path.parent / name for name in sorted(set(names)))


def _from_hub(name: str, revision: str | None) -> Files:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    reasons = []

    def fetch(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(name, file, revision=revision))
        except LocalEntryNotFoundError as error:  # not here, and no network to ask
            reasons.append(str(error).splitlines()[0])
        except EntryNotFoundError:
            pass
        except OSError as error:
            raise OSError(
                f"load_teacher: {name} must be a model of the hub that can be read "
                f"({str(error).splitlines()[0]})"
            ) from None
        return None

    configs = [path for path in map(fetch, CONFIGS) if path is not None]
    for file in WEIGHTS:
        found = fetch(file)
        if found is not None:
            for shard in _shards(found):
                fetch(shard.name)
            return Files(
                name, _config(configs[0].parent) if configs else {}, _shards(found)
            )
    if constants.HF_HUB_OFFLINE:
        raise OSError(
            f"load_teacher: {name} must be in the cache {constants.HF_HUB_CACHE} "
            "while HF_HUB_OFFLINE is set, no weights of it are there; unset it, or "
            "name a folder"
        )
    why = f" ({reasons[0]})" if reasons else ""
    raise OSError(
        f"load_teacher: {name} must hold one of {', '.join(WEIGHTS)}; none of them "
        f"could be fetched{why}"
    )


class Reader:
    """Names and tensors of the files, each tensor read when it is asked for."""

    def __init__(self, files: Files) -> None:
        from safetensors import SafetensorError, safe_open

        self._held: dict[str, Tensor] = {}
        self._where: dict[str, Any] = {}
        for path in files.weights:
            if not path.is_file():
                raise FileNotFoundError(
                    f"load_teacher: {files.source} must have all its weights, "
                    f"{path.name} is missing"
                )
            if path.suffix != ".safetensors":
                self._held |= checkpoint.read_upstream(path)
                continue
            try:
                file = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise ValueError(
                    f"load_teacher: {path} must be whole safetensors; it is truncated "
                    f"or damaged ({error})"
                ) from None
            self._where |= dict.fromkeys(file.keys(), file)

    def names(self) -> list[str]:
        """Return every name."""
        return [*self._where, *self._held]

    def __getitem__(self, name: str) -> Tensor:
        """Return one tensor, in float32."""
        if name in self._where:
            return self._where[name].get_tensor(name).float()
        return self._held[name].float()
