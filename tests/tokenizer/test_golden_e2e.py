"""The whole tokenizer against recordings of the published one.

Weights follow from their published names, so each case also shows that every name
finds its place.
"""

import pytest
import torch
from golden_weights import case_weights, hash_image, hash_weight

from tokenflow import TokenFlowConfig, TokenFlowTokenizer, checkpoint
from tokenflow.tokenizer.quantizer import Quantizer

SURE = 1e-5  # a recorded margin below this may fall either way in float32

TINY_PIXEL = {"width": 32, "blocks": 1}
TINY = {
    "semantic_decoder": {"width": 48, "depth": 3, "heads": 12},
    "semantic_target": 20,
    "pixel_latent": 16,
    "codebook_size": 128,
}
CASES = {
    "e2e_clipb_tiny": {
        "image_size": 32,
        "grid": 8,
        "scales": [1, 2, 3, 5, 8],
        "semantic_encoder": {
            "kind": "clip",
            "width": 32,
            "layers": 2,
            "heads": 4,
            "patch": 4,
            "image_size": 32,
        },
        "multipliers": [1, 1, 1],
    },
    "e2e_siglip_tiny": {
        "image_size": 42,
        "output_size": 384,
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
        "multipliers": [1, 1, 1, 1, 1],
    },
    "e2e_vitamin_tiny": {
        "image_size": 64,
        "grid": 4,
        "scales": [1, 2, 4],
        "semantic_encoder": {
            "kind": "vitamin",
            "width": 32,
            "stem_widths": [8, 16],
            "stem_depths": [2, 2],
            "layers": 2,
            "heads": 4,
        },
        "multipliers": [1, 1, 1, 1, 1],
    },
}


def tiny_config(name):
    case = dict(CASES[name])
    pixel = {**TINY_PIXEL, "multipliers": case.pop("multipliers")}
    return TokenFlowConfig(
        **{
            **TINY,
            **case,
            "semantic_decoder": {**TINY["semantic_decoder"], "grid": case["grid"]},
            "pixel_encoder": pixel,
            "pixel_decoder": pixel,
        }
    )


def loaded(config, weights):
    with torch.device("meta"):
        tokenizer = TokenFlowTokenizer(config)
    checkpoint.fill(tokenizer, weights, config.semantic_encoder["kind"], "a recording")
    return tokenizer.eval()


MSVQ = ("msvq_tiny_b1", "msvq_tiny_b2", "msvq_b224", "msvq_l256", "msvq_xl_small_dims")


@pytest.mark.parametrize("name", MSVQ)
@torch.no_grad()
def test_the_quantizer_is_the_recorded_one(golden, name):
    case = golden(name)
    semantic_dim, pixel_dim = case.meta["split"]
    scales = case.meta["scales"]
    config = TokenFlowConfig(
        grid=scales[-1],
        scales=scales,
        codebook_size=case.meta["n_e"],
        semantic_dim=semantic_dim,
        pixel_dim=pixel_dim,
        commitment_weight=case.meta["beta"],
        scale_drop=0.0,
    )
    quantizer = Quantizer(config)
    weights = case_weights(case)
    names = {checkpoint.our_name(key, "clip"): key for key in weights}
    for part, book in quantizer.named_parameters():
        book.copy_(weights[names[f"quantizer.{part}"]])
    features, recorded = case["in/features"], case["out/indices"].long()
    assert case.meta["min_margin"] > SURE
    indices, quantized = quantizer.eval().quantize(features)
    assert torch.equal(indices, recorded)
    close(quantized, case["out/final_quantize"])
    grid = (scales[-1], scales[-1])
    close(quantizer.lookup(recorded, size=grid), case["out/decode_code_quant"])
    short = recorded[:, : -(scales[-1] ** 2)]
    made = quantizer.lookup(short, size=grid)
    close(made, case["out/decode_code_quant_without_last_scale"])
    result = quantizer.train()(features)
    assert torch.equal(result.indices, recorded)
    losses = [result.vq_loss, result.commitment_loss, result.entropy_loss]
    close(torch.stack(losses).double(), case["out/mean_losses_vq_commit_entropy"])
    assert abs(result.usage.item() - case["out/usage"].item()) < 1e-6


@pytest.fixture(params=CASES)
def tiny(request, golden):
    case = golden(request.param)
    return case, loaded(tiny_config(request.param), case_weights(case))


def close(made, recorded, tolerance=1e-5):
    torch.testing.assert_close(made, recorded, atol=tolerance, rtol=1e-5)


@torch.no_grad()
def test_encode_and_decode_are_the_recorded_ones(tiny):
    case, tokenizer = tiny
    assert case.meta["min_margin"] > SURE
    stride = case.meta["pixel_stride_stored"]
    encoded = tokenizer.encode(case["in/image"])
    assert torch.equal(encoded.indices, case["out/indices"].long())
    close(encoded.quantized, case["out/final_quantize"])
    close(tokenizer.decode_semantics(encoded.quantized), case["out/semantic_recon"])
    pixels = tokenizer.decode_pixels(encoded.quantized)
    assert list(pixels.shape) == case.meta["shapes"]["pix"]
    close(pixels[..., ::stride, ::stride], case["out/pixel_recon"])


@torch.no_grad()
def test_decoding_recorded_indices_is_the_recorded_one(tiny):
    case, tokenizer = tiny
    stride = case.meta["pixel_stride_stored"]
    quantized = tokenizer.quantized(case["out/indices"])
    pixels = tokenizer.decode_pixels(quantized)[..., ::stride, ::stride]
    close(pixels, case["out/decode_code_pixel"])
    close(tokenizer.decode_semantics(quantized), case["out/decode_code_semantic"])


def test_understanding_reads_what_the_recorded_tower_reads(golden):
    case = golden("i2t_pieces_0")
    weights = case_weights(case, "tokenflow")
    config = tiny_config("e2e_siglip_tiny")
    config.codebook_size = len(weights["quantize.embedding_vqkd.weight"])
    tokenizer = loaded(config, weights)
    features = tokenizer.understanding_features(case["in/pixel_values"])
    close(features, case["out/tower_features"])


def full(golden, name, preset):
    case = golden(name)
    config = TokenFlowConfig.preset(preset)
    kind = config.semantic_encoder["kind"]
    with torch.device("meta"):
        tokenizer = TokenFlowTokenizer(config)
    upstream = checkpoint.to_upstream(tokenizer.state_dict(), kind)
    shapes = {
        key: list(value.shape)
        for key, value in upstream.items()
        if not key.startswith("scaling_layer.")  # constants, no hash; the model knows
    }
    assert shapes == dict(case.text("out/sd_keys"))
    weights = {key: hash_weight(key, shape) for key, shape in shapes.items()}
    checkpoint.fill(tokenizer, weights, kind, name)
    return case, tokenizer.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "preset"),
    [("full_clipb_224", "clip_b_224"), ("full_siglip_384", "siglip_so400m_384")],
)
@torch.no_grad()
def test_full_size_is_the_recorded_one(golden, name, preset):
    case, tokenizer = full(golden, name, preset)
    image = hash_image(case.meta["image_name"], case.meta["image_size"])
    assert torch.equal(image[..., ::8, ::8], case["in/image_stride8"])
    encoded = tokenizer.encode(image)
    differs = encoded.indices[0] != case["out/indices"][0]
    assert not (differs & (case["out/margin"] > SURE)).any()
    assert not differs.any()  # no margin of these two is as small as that
    close(encoded.quantized, case["out/final_quantize"], 2e-3)  # stored in float16
    pixels = tokenizer.decode_pixels(encoded.quantized)
    # float32 sums in another order differ by up to 1.3e-5 at this depth
    close(pixels[..., ::8, ::8], case["out/pixel_recon_s8"], 3e-5)
    mean_std = torch.stack([pixels.mean(), pixels.std()])
    close(mean_std, case["out/pixel_recon_mean_std"])
    semantics = tokenizer.decode_semantics(encoded.quantized)
    close(semantics[:, ::37, :64], case["out/semantic_recon_part"])
