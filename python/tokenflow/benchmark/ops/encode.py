"""encode: pixels to tokens, both encoders and the pyramid, random weights.

Published is the same encoders of torch's own modules and the published loop over the
scales. A rounding in an encoder flips a near-tie and the tokens after it, so tokens
that differ from those of float64 features are shown for everybody and blamed on none.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tokenflow_ext as tfx
from tokenflow.benchmark.method import Call, Methods, Values
from tokenflow.benchmark.ops import _maps, _models, pyramid_quantize
from tokenflow.config import TokenFlowConfig
from tokenflow.tokenizer.model import TokenFlowTokenizer

LABEL = "{preset} B={batch}"
CASES = [{"preset": "clip_b_256_enhanced", "batch": 1}]
TINY = {"preset": "mini", "batch": 1}
EXACT = False
_SMALL = {"width": 32, "blocks": 1}  # the decoder is not used
method = Methods()


def _model(values: Values) -> TokenFlowTokenizer:
    config = TokenFlowConfig.preset(values["preset"], pixel_decoder=_SMALL)
    torch.manual_seed(0)
    return TokenFlowTokenizer(config).eval().requires_grad_(False)


def make(values: Values, device: torch.device) -> Any:
    """Return a tokenizer and smooth pictures."""
    model = _model(values).to(device)
    draw, side = torch.Generator().manual_seed(1), model.config.image_size
    small = torch.rand(values["batch"], 3, 16, 16, generator=draw) * 2 - 1
    images = torch.nn.functional.interpolate(small, size=side, mode="bilinear")
    return SimpleNamespace(model=model, images=images.to(device))


def truth(case: Any) -> Tensor:
    """Tokens of the features that float64 encoders see."""
    scales = case.model.scales
    books = tuple(book.detach() for book in case.model.quantizer.books())
    features = _models.plain(case.model).double().features(case.images.double()).float()
    weight = case.model.config.pixel_weight
    found = tfx.reference.pyramid_quantize(
        features, *books, scales, pixel_weight=weight
    )
    return found[0]


def judge(found: Tensor, right: Tensor, case: Any) -> dict[str, Any]:
    """Count the tokens that differ."""
    wrong = int((found != right).sum())
    return {
        "mismatches": wrong,
        "judged": right.numel(),
        "right": wrong <= 0.5 * right.numel(),
    }


def work(values: Values) -> dict[str, float]:
    """Multiply-adds of both encoders, and of the search."""
    with torch.device("meta"):
        model = _models.plain(_model(values))
        side = model.config.image_size
        images = torch.empty(values["batch"], 3, side, side)
    with FlopCounterMode(display=False) as counter:
        model.features(images)
    pairs = model.config.num_tokens * model.config.codebook_size * values["batch"]
    width = model.config.semantic_dim + model.config.pixel_dim
    return {"fma": counter.get_total_flops() + 2.0 * pairs * width}


def _run(case: Any, last: bool) -> Call:
    model, images = case.model, case.images
    if last:
        model = model.to(memory_format=torch.channels_last)
        (images,) = _maps.last(images)
    return lambda: model.encode(images).indices


@method("ours", kind="ours")
def ours(case: Any) -> Call:
    """NCHW."""
    return _run(case, last=False)


@method("ours, channels_last", kind="ours")
def ours_last(case: Any) -> Call:
    """channels_last."""
    return _run(case, last=True)


def _eager(case: Any, last: bool, find: Any) -> Call:
    model, images = _models.plain(case.model), case.images
    if last:
        model = model.to(memory_format=torch.channels_last)
        (images,) = _maps.last(images)
    config = model.config
    books = tuple(book.detach() for book in model.quantizer.books())
    given = SimpleNamespace(
        books=books,
        rows=tfx.prepare(*books).rows,
        widths=[config.semantic_dim, config.pixel_dim],
        scales=[h for h, _ in model.scales],
        weight=config.pixel_weight,
    )

    def call() -> Tensor:
        given.features = model.features(images)
        return find(given)()[0]

    return call


@method("eager", kind="published")
def eager(case: Any) -> Call:
    """torch's modules and the published loop, NCHW."""
    return _eager(case, False, pyramid_quantize.published)


@method("eager, channels_last", kind="published")
def eager_last(case: Any) -> Call:
    """The same, channels_last."""
    return _eager(case, True, pyramid_quantize.published)


@method("eager, loop over product + argmax")
def eager_products(case: Any) -> Call:
    """torch's modules, NCHW, and the loop with one product a scale."""
    return _eager(case, False, pyramid_quantize.products)


@method("eager, channels_last, loop over product + argmax")
def eager_products_last(case: Any) -> Call:
    """The same, channels_last."""
    return _eager(case, True, pyramid_quantize.products)
