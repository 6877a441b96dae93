"""A tokenizer for pictures of 64 pixels: small networks, weights drawn at random."""

import torch

from tokenflow import TokenFlowConfig, TokenFlowTokenizer

SMALL = {
    "scales": [1, 2, 3, 4, 6, 8],
    "codebook_size": 256,
    "semantic_encoder": {"width": 32, "layers": 1},
    "semantic_decoder": {"width": 32},
    "semantic_target": 20,
    "pixel_encoder": {"multipliers": [1, 1, 1, 1]},
    "pixel_decoder": {"multipliers": [1, 1, 1, 1]},
    "pixel_latent": 32,
}


def small_tokenizer(seed=0, **changes):
    torch.manual_seed(seed)
    config = TokenFlowConfig.preset("mini", **{**SMALL, **changes})
    return TokenFlowTokenizer(config).eval()
