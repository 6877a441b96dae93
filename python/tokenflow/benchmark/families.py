"""Data for searches: what is easy, what is hard, and what is real.

`random` Gaussian books and vectors. `near` vectors close to an entry. `clustered`
books in groups, vectors near them. `fresh` books as the published code starts them.
`duplicates` every entry eight times. `zeros` every third entry zero, and one vector in
sixteen. `mini` the shipped tokenizer's book, and its features of crops of the shipped
picture.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tokenflow_ext.testing import make_books

FAMILIES = ("random", "near", "clustered", "fresh", "duplicates", "zeros", "mini")
_MINI = {"k": 4096, "ds": 16, "dp": 8}


def of_family(values: dict[str, Any], family: str) -> dict[str, Any]:
    """The same case with that data; `mini` brings a book of its own size."""
    if family not in FAMILIES:
        raise ValueError(f"family: must be one of {list(FAMILIES)}, got {family!r}")
    sizes = {k: v for k, v in _MINI.items() if k in values} if family == "mini" else {}
    return {**values, **sizes, "family": family}


def search(
    n: int, k: int, ds: int, dp: int, family: str = "random", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return vectors [n, ds + dp] and a book [k, ds + dp], float32, on the CPU."""
    draw = torch.Generator().manual_seed(seed)
    if family == "mini":
        return _features(n, draw), _mini_book()
    book = _book(k, ds, dp, family, seed, draw)
    vectors = torch.randn(n, ds + dp, generator=draw)
    if family in ("near", "clustered", "duplicates"):
        near = book[torch.randint(k, (n,), generator=draw)]
        vectors = near + 0.1 * vectors
    if family == "zeros":
        vectors[::16] = 0.0
    return vectors, book


def _book(
    k: int, ds: int, dp: int, family: str, seed: int, draw: torch.Generator
) -> Tensor:
    if family == "fresh":  # uniform in ±1/K, rows of each half then of unit length
        halves = (torch.rand(k, ds + dp, generator=draw) * 2 - 1).split([ds, dp], 1)
        return torch.cat([torch.nn.functional.normalize(h, dim=1) for h in halves], 1)
    known = family if family in ("clustered", "duplicates", "zeros") else "random"
    return torch.cat(make_books(k, ds, dp, seed, known), dim=1)


@cache
def _mini() -> Any:
    from tokenflow.tokenizer.model import TokenFlowTokenizer

    return TokenFlowTokenizer.from_pretrained("mini").eval()


def _mini_book() -> Tensor:
    return torch.cat([b.detach() for b in _mini().quantizer.books()], dim=1)


def _features(n: int, draw: torch.Generator) -> Tensor:
    """Features of n cells: crops of the sample picture, large and small, mirrored."""
    import numpy as np
    from PIL import Image

    from tokenflow.samples import SCENE

    model = _mini()
    side, cells = model.config.image_size, model.config.grid**2
    with Image.open(SCENE) as scene:
        scene = scene.convert("RGB")
    crops = []
    for _ in range(-(-n // cells)):
        share, x, y, mirror = torch.rand(4, generator=draw).tolist()
        size = round(min(scene.size) * (0.2 + 0.6 * share))
        left, top = (
            round(p * (s - size)) for p, s in zip((x, y), scene.size, strict=True)
        )
        crop = scene.resize((side, side), box=(left, top, left + size, top + size))
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1) / 127.5 - 1
        crops.append(pixels.flip(2) if mirror < 0.5 else pixels)
    with torch.no_grad():
        maps = [model.features(part) for part in torch.stack(crops).split(32)]
    rows = torch.cat(maps).permute(0, 2, 3, 1).flatten(0, 2)
    return rows[:n].contiguous()
