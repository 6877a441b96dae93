"""decoder: the whole pixel decoder, latent map to picture, random weights.

Published is the same network of torch's own modules; "fused" is that network after
`fuse_decoder`.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tokenflow_ext as tfx
from tokenflow.benchmark.method import Call, Methods, Values, compiled
from tokenflow.benchmark.ops import _maps, _models
from tokenflow.tokenizer.pixel import PixelDecoder

LABEL = "{name} {pixels}² B={batch}"
CASES = [
    {"name": "published", "width": 128, "blocks": 2, "pixels": 256, "batch": 1},
    {"name": "enhanced", "width": 256, "blocks": 4, "pixels": 256, "batch": 1},
]
TINY = {"name": "tiny", "width": 32, "blocks": 1, "pixels": 32, "batch": 2}
method = Methods()


def _model(values: Values) -> PixelDecoder:
    torch.manual_seed(0)
    return PixelDecoder(width=values["width"], blocks=values["blocks"]).eval()


def make(values: Values, device: torch.device) -> Any:
    """Return a decoder and a latent map."""
    side, draw = values["pixels"] // 16, torch.Generator().manual_seed(1)
    latent = torch.randn(values["batch"], 256, side, side, generator=draw)
    model = _model(values).requires_grad_(False).to(device)
    return SimpleNamespace(model=model, latent=latent.to(device), part=lambda y: y)


def truth(case: Any) -> Tensor:
    """The picture in float64."""
    return _models.plain(case.model).double()(case.latent.double())


def _eager(case: Any) -> Tensor:
    return _models.plain(case.model)(case.latent)


judge = _maps.judge(_eager)


def work(values: Values) -> dict[str, float]:
    """Multiply-adds of all convolutions, products and attention, done directly."""
    with torch.device("meta"):
        model = _models.plain(_model(values))
        side = values["pixels"] // 16
        latent = torch.empty(values["batch"], 256, side, side)
    with FlopCounterMode(display=False) as counter:
        model(latent)
    return {"fma": float(counter.get_total_flops())}


def _run(model: Any, latent: Tensor, last: bool = False) -> Call:
    if last:
        model = model.to(memory_format=torch.channels_last)
        (latent,) = _maps.last(latent)
    return lambda: model(latent)


@method("ours", kind="ours")
def ours(case: Any) -> Call:
    """Our decoder, NCHW."""
    return _run(case.model, case.latent)


@method("ours, channels_last", kind="ours")
def ours_last(case: Any) -> Call:
    """Our decoder, channels_last."""
    return _run(case.model, case.latent, last=True)


@method("fused", kind="ours")
def fused(case: Any) -> Call:
    """Somebody else's decoder after `fuse_decoder`, NCHW."""
    return _run(tfx.fuse_decoder(_models.plain(case.model)), case.latent)


@method("fused, channels_last", kind="ours")
def fused_last(case: Any) -> Call:
    """The same, channels_last."""
    model = tfx.fuse_decoder(_models.plain(case.model))
    return _run(model, case.latent, last=True)


@method("eager", kind="published")
def eager(case: Any) -> Call:
    """torch's modules, NCHW."""
    return _run(_models.plain(case.model), case.latent)


@method("eager, channels_last", kind="published")
def eager_last(case: Any) -> Call:
    """torch's modules, channels_last."""
    return _run(_models.plain(case.model), case.latent, last=True)


@method("compiled", compiled=True)
def model_compiled(case: Any) -> Call:
    """torch's modules under torch.compile, channels_last."""
    model = _models.plain(case.model)
    return _run(compiled(model.to(memory_format=_maps.LAST)), *_maps.last(case.latent))
