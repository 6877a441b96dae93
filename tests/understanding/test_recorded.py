"""The pieces of understanding against recordings of the published ones."""

import numpy as np
import pytest
import torch
from golden_weights import case_weights
from PIL import Image
from transformers import AutoConfig

from tokenflow import (
    TokenFlowConfig,
    TokenFlowForUnderstanding,
    TokenFlowTokenizer,
    TokenFlowUnderstandingConfig,
    checkpoint,
)
from tokenflow.tokenizer.processing import pad_to_square, to_batch
from tokenflow.understanding.projector import Projector

PIXEL = {"width": 32, "multipliers": [1, 1, 1, 1, 1], "blocks": 1}
TINY = {
    "image_size": 42,
    "grid": 3,
    "scales": [1, 2, 3],
    "semantic_encoder": {
        "kind": "siglip",
        "width": 32,
        "layers": 3,
        "heads": 4,
        "mlp_width": 80,
        "patch": 14,
        "image_size": 42,
    },
    "semantic_decoder": {"width": 48, "grid": 3, "depth": 3, "heads": 12},
    "semantic_target": 20,
    "pixel_encoder": PIXEL,
    "pixel_decoder": PIXEL,
    "pixel_latent": 16,
    "codebook_size": 128,
    "semantic_dim": 32,
    "pixel_dim": 8,
}


def test_pictures_are_padded_and_resized_as_recorded(golden):
    case = golden("i2t_pieces_0")
    picture = Image.fromarray(case["in/image_hwc"].numpy())
    assert np.array_equal(np.array(pad_to_square(picture)), case["out/expand2square"])
    for resize in ("pad", "squash"):
        made = to_batch(picture, 384, resize)
        assert list(made.shape) == case["out/processed_pad_shape"].tolist()
        recorded = case[f"out/processed_{resize}"]
        torch.testing.assert_close(made[..., ::8, ::8], recorded, atol=1e-6, rtol=0)


@torch.no_grad()
def test_features_and_projector_are_the_recorded_ones(golden):
    case = golden("i2t_pieces_0")
    assert case.meta["min_margin"] > 1e-5
    config = TokenFlowConfig(**TINY)
    with torch.device("meta"):
        tokenizer = TokenFlowTokenizer(config)
    weights = case_weights(case, "tokenflow")
    checkpoint.fill(tokenizer, weights, "siglip", "a recording")
    features = tokenizer.eval().understanding_features(case["in/pixel_values"])
    torch.testing.assert_close(features, case["out/tower_features"], atol=1e-5, rtol=0)
    state = {
        checkpoint.our_understanding_name(key).removeprefix("projector."): value
        for key, value in case_weights(case, "projector").items()
    }
    projector = Projector(40, 24)
    projector.load_state_dict(state)
    torch.testing.assert_close(
        projector(features), case["out/projected"], atol=1e-5, rtol=1e-5
    )


PUBLISHED = {  # of the language model: settings, names with projector, vocabulary
    "qwen2": (
        {
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
        583,
    ),
    "llama": (
        {
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "vocab_size": 32000,
        },
        367,
    ),
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_published_names_and_shapes_are_ours(family):
    settings, names = PUBLISHED[family]
    config = TokenFlowUnderstandingConfig(
        tokenizer_config=TokenFlowConfig.preset("siglip_so400m_384"),
        text_config=AutoConfig.for_model(family, **settings),
    )
    with torch.device("meta"):
        model = TokenFlowForUnderstanding(config)
    shapes = {
        checkpoint.upstream_understanding_name(key): tuple(value.shape)
        for key, value in model.state_dict().items()
        if not key.startswith("tokenizer.")
    }
    assert config.image_tokens == 729 and config.feature_width == 40
    assert len(shapes) == names
    assert shapes["model.mm_projector.0.weight"] == (5120, 40)
    assert shapes["model.mm_projector.2.weight"] == (5120, 5120)
    assert shapes["model.mm_projector.2.bias"] == (5120,)
    vocabulary = (settings["vocab_size"], 5120)
    assert shapes["model.embed_tokens.weight"] == vocabulary
    assert shapes["lm_head.weight"] == vocabulary
    assert shapes["model.layers.39.mlp.gate_proj.weight"] == (13824, 5120)
    assert ("model.layers.0.self_attn.k_proj.bias" in shapes) == (family == "qwen2")
    assert all(
        checkpoint.upstream_understanding_name(checkpoint.our_understanding_name(key))
        == key
        for key in shapes
    )
