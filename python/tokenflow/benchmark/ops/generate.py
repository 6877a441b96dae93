"""generate: a prompt to the tokens of a picture, random weights, published schedule.

The layout is the published 7B model's (heads of 128, MLP 2.69 times the width, 131
positions before the picture) with fewer and narrower layers, and fewer entries so that
they stay the small part of the work that they are there. Published is the loop as it
was: the whole sequence again for every pass, both halves of the batch, attention as
products, logits of the whole vocabulary at every position. A rounding flips a near-tie
and the draws after it, so tokens that differ from the published loop's are shown for
everybody and blamed on none.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow.benchmark.method import Call, Methods, Values
from tokenflow.config import TokenFlowConfig
from tokenflow.generation import inputs, sampling
from tokenflow.generation.config import TokenFlowGenerationConfig
from tokenflow.generation.model import TokenFlowForGeneration
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.scales import Scales, token_counts

LABEL = "width {width}, {layers} layers, {passes} a scale, B={batch}"
_SHAPE = {"layers": 2, "width": 1024, "entries": 1024, "text": 128, "scales": 9}
CASES = [{**_SHAPE, "passes": passes, "batch": 1} for passes in (1, 3)]
TINY = {
    **{"layers": 1, "width": 128, "entries": 64, "text": 5, "scales": 3},
    **{"passes": 3, "batch": 2},
}
EXACT = False
GUIDANCE, HEAD, BEGIN = 7.5, 128, 3
method = Methods()


def _config(values: Values) -> TokenFlowGenerationConfig:
    width, entries = values["width"], values["entries"]
    preset = TokenFlowGenerationConfig.preset("llama_7b_256")
    return TokenFlowGenerationConfig(
        language={
            "hidden_size": width,
            "intermediate_size": round(width * 11008 / 4096),
            "num_hidden_layers": values["layers"],
            "num_attention_heads": width // HEAD,
            "num_key_value_heads": width // HEAD,
        },
        scales=preset.scales[: values["scales"]],
        codebook_size=entries,
        code_width=40,
        image_start=100,
        pad_id=0,
        text_length=values["text"],
    )


def _books(config: TokenFlowGenerationConfig) -> TokenFlowTokenizer:
    """A tokenizer of which the entries alone are used."""
    grid = config.scales[-1]
    small = {"width": 32, "multipliers": [1, 1], "blocks": 1}
    return TokenFlowTokenizer(
        TokenFlowConfig.preset(
            "mini",
            image_size=2 * grid,
            grid=grid,
            scales=config.scales,
            codebook_size=config.codebook_size,
            semantic_dim=32,
            semantic_encoder={"layers": 1, "patch": 2, "image_size": 2 * grid},
            semantic_decoder={"grid": grid},
            pixel_encoder=small,
            pixel_decoder=small,
        )
    )


def make(values: Values, device: torch.device) -> Any:
    """Return a model and ids of prompts."""
    torch.manual_seed(0)
    config = _config(values)
    model = TokenFlowForGeneration(config).eval().requires_grad_(False)
    model = model.attach(_books(config)).to(device)
    shape = (2, values["batch"], values["text"] + BEGIN)
    draw = torch.Generator().manual_seed(1)
    wanted, unwanted = torch.randint(1, 100, shape, generator=draw).to(device)
    passes = list(sampling.PASSES[values["passes"]])
    return SimpleNamespace(
        model=model, wanted=wanted, unwanted=unwanted[:1], passes=passes
    )


def truth(case: Any) -> Tensor:
    """What the published loop draws."""
    return _plain(case, "eager", everywhere=True)


def judge(found: Tensor, right: Tensor, case: Any) -> dict[str, Any]:
    """Count the tokens that differ."""
    wrong = int((found.cpu() != right.cpu()).sum())
    return {
        "mismatches": wrong,
        "judged": right.numel(),
        "right": found.shape == right.shape,
    }


def work(values: Values) -> dict[str, float]:
    """Multiply-adds of our way: each position once, a second look for each pass."""
    with torch.device("meta"):
        model = TokenFlowForGeneration(_config(values))
    layers = sum(p.numel() for p in model.llama.parameters() if p.ndim == 2)
    image = model.config.num_tokens - 1
    rows, looks = 2 * values["batch"], values["passes"] * image
    prompt = (values["batch"] + 1) * (values["text"] + BEGIN)
    entries = model.head.weight.shape[1] * values["entries"] * rows * looks
    return {"fma": 2.0 * (layers * (prompt + rows * looks) + entries)}


@method("ours", kind="ours")
def ours(case: Any) -> Call:
    """`generate`, tokens only."""
    return lambda: case.model.generate(
        case.wanted,
        negative_prompt=case.unwanted,
        guidance_scale=GUIDANCE,
        refinement=case.passes,
        generator=torch.Generator().manual_seed(2),
        output="tokens",
    )


@method("published loop", kind="published")
def published(case: Any) -> Call:
    """Everything again for every pass."""
    return lambda: _plain(case, "eager", everywhere=True)


@method("published loop, fused attention, logits where drawn")
def published_fused(case: Any) -> Call:
    """The same without its two plainest wastes."""
    return lambda: _plain(case, "sdpa", everywhere=False)


@torch.no_grad()
def _plain(case: Any, attention: str, everywhere: bool) -> Tensor:
    model = case.model
    before, language = model.llama.config._attn_implementation, model.llama.config
    language._attn_implementation = attention
    try:
        return _loop(case, everywhere)
    finally:
        language._attn_implementation = before


def _loop(case: Any, everywhere: bool) -> Tensor:
    model, config = case.model, case.model.config
    ids = torch.cat([case.wanted, case.unwanted.expand(len(case.wanted), -1)])
    draw = torch.Generator().manual_seed(2)
    counts, scales = token_counts(model.scales), model.scales
    sequence, drawn, total = model.embed_prompt(ids), [], None
    for number, (scale, count) in enumerate(zip(scales, counts, strict=True)):
        strength = sampling.guidance_at(number, len(scales), GUIDANCE)
        before = given = None if total is None else inputs.enlarge(total, scale)
        start, first = sum(counts[:number]), sequence
        for turn, limits in enumerate(case.passes if number else case.passes[:1]):
            x = sequence
            if given is not None:
                rows = model.embed_image(inputs.as_rows(given), number, start)
                x = torch.cat([sequence, rows.repeat(2, 1, 1)], dim=1)
            first = first if turn else x
            logits = _logits(model, x, ids, scales[: number + 1], count, everywhere)
            one, other = logits.chunk(2)
            guided = (1 + strength) * one - strength * other
            indices = sampling.draw(
                guided[..., config.image_start :],
                *limits,
                draw,
                before=config.image_start,
            )
            entries = inputs.as_map(model.entries(indices), scale)
            total = given = entries if before is None else before + entries
        sequence = first
        drawn.append(indices)
    return torch.cat(drawn, dim=1)


def _logits(
    model: Any, x: Tensor, ids: Tensor, scales: Scales, count: int, everywhere: bool
) -> Tensor:
    seen = inputs.attended(ids != model.config.pad_id, scales, tail=0)
    places = torch.arange(x.shape[1], device=x.device)
    hidden = model.llama(x, places, seen[:, None])
    if everywhere:
        return model.head(hidden).float()[:, -count:]
    return F.linear(hidden[:, -count:], model.head.weight).float()
