"""Weights of networks that judge, read from files the user names.

Nothing is fetched. A file is safetensors, or PyTorch's own format read without running
anything in it.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from tokenflow import checkpoint


def read(source: str | PathLike, reader: str) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name.

    Args:
        source: `.safetensors`, or a state dict saved by PyTorch.
        reader: Who asks; errors begin with it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or something else.
    """
    path = Path(source)
    try:
        if path.suffix != ".safetensors" or not path.is_file():
            return checkpoint.read_upstream(path)
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{path} must be whole safetensors; it is truncated or damaged "
                f"({error})"
            ) from None
    except (FileNotFoundError, ValueError) as error:
        words = str(error).removeprefix("convert: ")
        raise type(error)(f"{reader}: {words}") from None


@torch.no_grad()
def fill(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str | PathLike
) -> None:
    """Copy each wanted tensor from what was found; what is found besides is left.

    Raises:
        ValueError: One is missing or has another shape; names the file and the weights.
    """
    checkpoint.check_complete(source, [key for key in wanted if key not in found], [])
    checkpoint.check_shapes(
        source,
        [
            (key, found[key].shape, value.shape)
            for key, value in wanted.items()
            if found[key].shape != value.shape
        ],
    )
    for key, value in wanted.items():
        value.copy_(found[key])
