"""Recorded and random generators, and the published loop, written out plainly.

`published_loop` runs the whole sequence again for every pass, both halves of the batch,
over the whole vocabulary, with attention as matrix products: what the published code
does and ours must equal.
"""

import torch
import torch.nn.functional as F
from golden_weights import case_weights

from tokenflow import checkpoint
from tokenflow.generation.config import TokenFlowGenerationConfig
from tokenflow.generation.model import TokenFlowForGeneration
from tokenflow.tokenizer.model import TokenFlowConfig, TokenFlowTokenizer

RECORDED = ("t2i_tiny_0", "t2i_tiny_1")


def recorded_tokenizer(case):
    """The tiny tokenizer of a recorded case."""
    meta = case.meta
    facts, grid = meta["tiny_tokenflow"], meta["scales"][-1]
    pixel = {
        "width": facts["ch"],
        "multipliers": facts["ch_mult"],
        "blocks": facts["num_res_blocks"],
    }
    config = TokenFlowConfig(
        image_size=meta["img"],
        grid=grid,
        scales=meta["scales"],
        semantic_encoder={"kind": "clip", **facts["clip"], "image_size": meta["img"]},
        semantic_decoder={
            "width": facts["semdec_dim"],
            "depth": 3,
            "heads": 12,
            "grid": grid,
        },
        semantic_target=facts["dec_out"],
        pixel_encoder=pixel,
        pixel_decoder=pixel,
        pixel_latent=facts["z_channels"],
        codebook_size=meta["n_e"],
        semantic_dim=32,
    )
    with torch.device("meta"):
        tokenizer = TokenFlowTokenizer(config)
    weights = case_weights(case, "tokenflow")
    checkpoint.fill(tokenizer, weights, "clip", "a recording")
    return tokenizer.eval()


def recorded(case):
    """The tiny generator of a recorded case, its tokenizer attached."""
    meta = case.meta
    weights = case_weights(case, "t2i")
    config = TokenFlowGenerationConfig(
        language={
            "hidden_size": meta["hidden"],
            "intermediate_size": meta["intermediate"],
            "num_hidden_layers": meta["layers"],
            "num_attention_heads": meta["heads"],
            "num_key_value_heads": meta["kv_heads"],
            "rms_norm_eps": meta["rms_eps"],
        },
        scales=meta["scales"],
        codebook_size=meta["n_e"],
        code_width=40,
        image_start=meta["image_token_start"],
        pad_id=meta["pad_id"],
        text_length=meta["prefix_len"] - 3,
        embedded=len(weights["model.embed_tokens.weight"]),
    )
    with torch.device("meta"):
        model = TokenFlowForGeneration(config)
    checkpoint.fill_generation(model, weights, "a recording")
    return model.eval().attach(recorded_tokenizer(case))


def small_tokenizer(scales=(1, 2, 3), **changes):
    """A tokenizer of random weights, as small as they come."""
    pixel = {"width": 32, "multipliers": [1, 1, 1], "blocks": 1}
    side = 4 * scales[-1]
    encoder = {"kind": "clip", "width": 16, "layers": 1, "heads": 2, "patch": 4}
    settings = {
        "image_size": side,
        "grid": scales[-1],
        "scales": list(scales),
        "semantic_encoder": {**encoder, "image_size": side},
        "semantic_decoder": {
            "width": 24,
            "grid": scales[-1],
            "depth": 1,
            "heads": 2,
        },
        "pixel_encoder": pixel,
        "pixel_decoder": pixel,
        "pixel_latent": 16,
        "codebook_size": 64,
        "semantic_dim": 8,
        "pixel_dim": 4,
    }
    return TokenFlowTokenizer(TokenFlowConfig(**{**settings, **changes})).eval()


def small(scales=(1, 2, 3), *, seed=0, sure=4.0, **changes):
    """A generator of random weights on `small_tokenizer`.

    `sure` enlarges the head's weights, so that draws follow the logits.
    """
    torch.manual_seed(seed)
    language = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    settings = {
        "language": language,
        "scales": list(scales),
        "codebook_size": 64,
        "code_width": 12,
        "image_start": 20,
        "pad_id": 0,
        "text_length": 6,
    }
    model = TokenFlowForGeneration(TokenFlowGenerationConfig(**{**settings, **changes}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.normal_(std=0.5 if weight.ndim > 1 else 0.1)
        model.head.weight.mul_(sure)
        model.embed.weight.mul_(2)
    return model.eval().attach(small_tokenizer(tuple(scales)))


def prompts(rows, *, length=6, vocabulary=20, seed=0, full=False):
    """Prompts of different lengths, padded on the left with 0: [rows, length + 2]."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (rows, length), generator=draw)
    for row in range(0 if full else rows):
        ids[row, : row % (length - 1)] = 0
    ends = torch.tensor([[1, 2]]).expand(rows, -1)
    return torch.cat([ids, ends], dim=1)


# the published loop


def rms(x, weight, eps):
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotate(x, positions, theta=10000.0):
    half = x.shape[-1] // 2
    angles = positions[:, None] / theta ** (torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)


def run(model, x, allowed):
    """The language model over a whole sequence: [B, T, width] → [B, T, width]."""
    language, positions = model.llama.config, torch.arange(x.shape[1])
    heads, pairs = language.num_attention_heads, language.num_key_value_heads
    for layer in model.llama.layers:
        part = layer.attention
        q, k, v = (
            F.linear(x, p.weight).view(*x.shape[:2], n, -1)
            for p, n in (
                (part.q_proj, heads),
                (part.k_proj, pairs),
                (part.v_proj, pairs),
            )
        )
        q = rotate(rms(q, part.query_norm.weight, 1e-6).transpose(1, 2), positions)
        k = rotate(rms(k, part.key_norm.weight, 1e-6).transpose(1, 2), positions)
        k = k.repeat_interleave(heads // pairs, dim=1)
        v = v.transpose(1, 2).repeat_interleave(heads // pairs, dim=1)
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        scores = scores + torch.zeros(allowed.shape).masked_fill(
            ~allowed, torch.finfo(x.dtype).min
        )
        found = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        eps = language.rms_norm_eps
        x = x + rms(
            F.linear(found, part.o_proj.weight), layer.attention_norm.weight, eps
        )
        mlp = layer.mlp
        y = F.silu(F.linear(x, mlp.gate_proj.weight)) * F.linear(x, mlp.up_proj.weight)
        y = F.linear(y, mlp.down_proj.weight)
        x = x + rms(y, layer.mlp_norm.weight, eps)
    return rms(x, model.llama.norm.weight, language.rms_norm_eps)


def choose(logits, top_k, top_p, generator):
    """[B, n, V] → [B, n]: the k largest, the p most likely, one draw."""
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1)[0].amin(-1, True)
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p:
        rising, order = logits.sort(dim=-1)
        out = rising.softmax(-1).cumsum(-1) <= 1 - top_p
        out[..., -1:] = False
        logits = logits.masked_fill(out.scatter(-1, order, out), -torch.inf)
    odds = logits.softmax(-1).flatten(0, 1)
    drawn = torch.multinomial(odds, 1, replacement=True, generator=generator)
    return drawn.view(logits.shape[:2])


@torch.no_grad()
def published_loop(model, wanted, unwanted, guidance, passes, generator):
    """Return (final tokens [B, N], all drawn ids in order, positions run per row)."""
    config, prompt = model.config, wanted.shape[1]
    ids, sides = torch.cat([wanted, unwanted]), config.scales
    counts = [s * s for s in sides]
    start = F.embedding(ids, model.embed.weight) + model.levels[0]
    start[:, -1] += model.positions[0]
    so_far, final, every, positions, total = start, [], [], 0, None
    book = model.image_tokenizer.quantizer
    for number, side in enumerate(sides):
        t, n = guidance * number / max(1, len(sides) - 1), counts[number]
        before = total
        if number:
            size = (side, side)
            before = F.interpolate(total, size, mode="bicubic", align_corners=False)
        given = before
        for k, p in passes if number else passes[:1]:
            x = so_far
            if number:
                rows = given.flatten(2).transpose(1, 2)
                row = F.gelu(F.linear(rows, *_two(model.projector[0])))
                row = F.linear(row, *_two(model.projector[2]))
                first = sum(counts[:number])
                row = row + model.levels[number + 1]
                row = row + model.positions[first : first + n]
                x = torch.cat([so_far, row.repeat(2, 1, 1)], dim=1)
            allowed = published_mask(ids != config.pad_id, sides[: number + 1])
            positions += x.shape[1]
            logits = F.linear(run(model, x, allowed[:, None]), model.head.weight)
            logits = logits[:, x.shape[1] - n :]
            half = len(wanted)
            logits = (1 + t) * logits[:half] - t * logits[half:]
            logits[..., : config.image_start] = -torch.inf
            drawn = choose(logits, k, p, generator) - config.image_start
            every.append(drawn)
            entries = book.entries(drawn).transpose(1, 2).unflatten(2, (side, side))
            total = entries if before is None else before + entries
            given = total
        if number:
            rows = before.flatten(2).transpose(1, 2)  # of the first pass, again
            row = F.linear(rows, *_two(model.projector[0]))
            row = F.linear(F.gelu(row), *_two(model.projector[2]))
            first = sum(counts[:number])
            row = row + model.levels[number + 1] + model.positions[first : first + n]
            so_far = torch.cat([so_far, row.repeat(2, 1, 1)], dim=1)
        final.append(drawn)
    assert so_far.shape[1] == prompt + sum(counts) - 1
    return torch.cat(final, 1), torch.cat(every, 1), positions


def _two(linear):
    return linear.weight, linear.bias


def published_mask(real, sides):
    """[B, T, T] bool of the positions up to the last of these scales, one by one."""
    prompt = real.shape[1]
    level = [-1] * (prompt - 1)
    for number, side in enumerate(sides):
        level += [number] * side * side
    length = len(level)
    allowed = torch.zeros(len(real), length, length, dtype=torch.bool)
    for b in range(len(real)):
        for q in range(length):
            for k in range(length):
                inside = level[q] >= 0 and level[k] >= 0
                if inside:
                    allowed[b, q, k] = level[q] >= level[k]
                else:
                    allowed[b, q, k] = k <= q and (k >= prompt or bool(real[b, k]))
    return allowed
