"""The published layouts, counted without a byte of weights."""

import json

import pytest
import torch

from tokenflow import TokenFlowConfig, TokenFlowTokenizer, checkpoint
from tokenflow.config import PRESETS

# parameters, names in the published state dict, tokens of a native picture
PUBLISHED = {
    "clip_b_224": (181_902_251, 549, 561),
    "clip_b_256_enhanced": (376_569_643, 649, 817),
    "vitamin_xl_256": (559_964_139, 972, 817),
    "siglip_so400m_384": (554_009_963, 848, 2227),
}
PARTS = {  # parameters of the parts, for B, L, XL
    "clip_b_224": (85_799_424, 21_440_256, 615_200, 984_320),
    "vitamin_xl_256": (434_724_672, 48_154_752, 1_365_152, 2_656_512),
    "siglip_so400m_384": (428_225_600, 48_699_648, 1_365_152, 2_656_512),
}


def on_meta(config):
    with torch.device("meta"):
        return TokenFlowTokenizer(config)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_names_are_the_published_ones(name):
    parameters, names, tokens = PUBLISHED[name]
    config = TokenFlowConfig.preset(name)
    model = on_meta(config)
    upstream = checkpoint.to_upstream(
        model.state_dict(), config.semantic_encoder["kind"]
    )
    assert count(model) == parameters
    assert len(upstream) == names
    assert config.num_tokens == tokens


@pytest.mark.parametrize("name", PARTS)
def test_each_part_has_its_share(name):
    model = on_meta(TokenFlowConfig.preset(name))
    parts = (
        model.semantic_encoder,
        model.semantic_decoder,
        model.semantic_head,
        model.semantic_target_head,
    )
    assert tuple(map(count, parts)) == PARTS[name]
    assert count(model.pixel_encoder) == 29_298_176
    assert count(model.pixel_decoder) == 42_449_795
    assert count(model.quant_conv) == 2_056
    assert count(model.post_quant_conv) == 2_304
    assert count(model.quantizer) == 1_310_720


@pytest.mark.parametrize("name", ["vitamin_xl_256", "siglip_so400m_384"])
def test_the_enhanced_decoder_is_an_option_of_each(name):
    plain = on_meta(TokenFlowConfig.preset(name))
    enhanced = on_meta(TokenFlowConfig.preset(name, enhanced=True))
    assert count(enhanced.pixel_decoder) == 237_117_187
    # 1×1 convolution in front is the same, so nothing else may differ
    gained = count(enhanced.pixel_decoder) - count(plain.pixel_decoder)
    assert count(enhanced) - count(plain) == gained
    back = TokenFlowConfig.preset("clip_b_256_enhanced", enhanced=False)
    assert count(on_meta(back)) == PUBLISHED["clip_b_224"][0]


def test_mini_is_small():
    model = on_meta(TokenFlowConfig.preset("mini"))
    assert count(model) <= 4_000_000
    books = count(model.quantizer)
    assert 2 * (count(model) - books) + 4 * books <= 8_000_000  # bytes as shipped


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_its_file(name, tmp_path):
    config = TokenFlowConfig.preset(name)
    config.save_pretrained(tmp_path)
    assert TokenFlowConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_scales_of_pairs_survive_their_file(tmp_path):
    config = TokenFlowConfig(scales=((1, 2), 4, (8, 8)))
    config.save_pretrained(tmp_path)
    assert TokenFlowConfig.from_pretrained(tmp_path).scales == [[1, 2], 4, [8, 8]]
    assert config.scales == [[1, 2], 4, [8, 8]]
    assert config.num_tokens == 2 + 16 + 64


def test_the_estimator_reaches_the_quantizer_and_survives_its_file(tmp_path):
    config = TokenFlowConfig.preset("mini", estimator="rotation")
    config.save_pretrained(tmp_path)
    config = TokenFlowConfig.from_pretrained(tmp_path)
    assert on_meta(config).quantizer.estimator == "rotation"


def test_a_file_older_than_the_estimator_is_read_as_published(tmp_path):
    TokenFlowConfig.preset("mini").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["estimator"]
    path.write_text(json.dumps(values))
    config = TokenFlowConfig.from_pretrained(tmp_path)
    assert on_meta(config).quantizer.estimator == "straight_through"


def test_changes_are_merged_into_a_part():
    config = TokenFlowConfig.preset("mini", pixel_encoder={"width": 64}, grid=16)
    plain = TokenFlowConfig.preset("mini")
    assert config.pixel_encoder == {**plain.pixel_encoder, "width": 64}
    assert config.grid == 16
    assert TokenFlowConfig.preset("mini").pixel_encoder == plain.pixel_encoder


def test_two_presets_share_nothing():
    one = TokenFlowConfig.preset("clip_b_224")
    one.pixel_encoder["multipliers"].append(9)
    assert TokenFlowConfig.preset("clip_b_224").pixel_encoder["multipliers"][-1] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": [1, 9]}, "must not exceed grid = 8"),
        ({"scales": []}, "at least one"),
        ({"scales": [0, 4]}, "positive integers, got 0"),
        ({"codebook_size": 0}, "codebook_size must be ≥ 1"),
        ({"pixel_weight": -1.0}, "pixel_weight must be ≥ 0"),
        ({"scale_drop": 1.5}, r"scale_drop must be in \[0, 1\]"),
        ({"estimator": "gumbel"}, "estimator must be one of .* got 'gumbel'"),
        ({"semantic_encoder": {"kind": "dino"}}, "got 'dino'"),
        ({"pixel_decoder": {"multipliers": [1, 2]}}, "got 4 and 2"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TokenFlowConfig.preset("mini", **changes)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'mini'.*got 'maxi'"):
        TokenFlowConfig.preset("maxi")
