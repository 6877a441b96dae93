"""Weights and pictures defined by a hash, as the recorded cases use them.

A recorded case may name its weights instead of storing them: every element
follows from the name of its tensor and its position, so a full-size model is
compared without a single file of weights. The arithmetic is modulo 2**32:

    x = crc32(name) + i · 2654435761, then two rounds of shift and multiply
    u = x / 2**32 · 2 − 1, in [−1, 1)

Source: README.md of the recorded cases, "Hash rule for weights and images".
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

HALF_SIZE = (
    "pos_embed",
    "position_embedding",
    "positional_embedding",
    "cls_token",
    "class_embedding",
    "probe",
    "lvl_embed",
    "pos_1LC",
    "embed_tokens",
)
CHUNK = 1 << 20  # elements hashed at a time, which bounds the float64 scratch


def hash_uniform(name: str, start: int, count: int) -> np.ndarray:
    """Return elements start … start + count of the stream `name`, float64."""
    x = np.arange(start, start + count, dtype=np.uint64).astype(np.uint32)
    x *= np.uint32(2654435761)
    x += np.uint32(zlib.crc32(name.encode()))
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x / 2.0**32 * 2 - 1


def hash_tensor(
    name: str, shape: Sequence[int], scale: float = 1.0, offset: float = 0.0
) -> Tensor:
    """Return offset + scale · u(name) in `shape`, rounded once to float32."""
    values = np.empty(math.prod(shape), dtype=np.float32)
    for start in range(0, values.size, CHUNK):
        count = min(CHUNK, values.size - start)
        u = hash_uniform(name, start, count)
        values[start : start + count] = offset + u * scale
    return torch.from_numpy(values.reshape(tuple(shape)))


def hash_weight(key: str, shape: Sequence[int]) -> Tensor:
    """Return the weight of upstream's parameter `key`; the first rule that fits."""
    if "codebook_used" in key:
        return torch.zeros(tuple(shape))
    if "embedding_vqkd" in key or "embedding_vqgan" in key:
        return hash_tensor(key, shape)
    if any(word in key for word in HALF_SIZE):
        return hash_tensor(key, shape, 0.5)
    if len(shape) >= 2:
        return hash_tensor(key, shape, math.sqrt(3 / math.prod(shape[1:])))
    if key.rpartition(".")[2] == "weight":
        return hash_tensor(key, shape, 0.1, 1.0)
    return hash_tensor(key, shape, 0.1)


def hash_image(name: str, size: int) -> Tensor:
    """Return the picture `name` of the full-size cases: [1, 3, size, size]."""
    low = hash_tensor(f"image_lo/{name}", (1, 3, 8, 8))
    fine = hash_tensor(f"image/{name}", (1, 3, size, size))
    enlarged = torch.nn.functional.interpolate(low, size=size, mode="nearest")
    return 0.7 * enlarged + 0.3 * fine


def case_weights(case, part: str | None = None) -> dict[str, Tensor]:
    """Return a case's weights under upstream's keys: stored, or by the hash rule.

    `case` is what the `golden` fixture returns; `part` names one module of a case
    that lists the keys of several.
    """
    if "out/sd_keys" not in case:
        return case.weights()
    keys = case.text("out/sd_keys")
    if part is not None:
        keys = keys[part]
    return {key: hash_weight(key, shape) for key, shape in keys}


def renamed(
    weights: Mapping[str, Tensor], rename: Callable[[str], str | None]
) -> dict[str, Tensor]:
    """Return weights under rename(key); keys renamed to None are left out."""
    pairs = ((rename(key), tensor) for key, tensor in weights.items())
    return {key: tensor for key, tensor in pairs if key is not None}
