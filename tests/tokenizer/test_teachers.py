"""Teachers say what the published networks say, and stay as they are.

Judges: transformers' own modules from tiny random configurations, written by
`save_pretrained` and read back, and recorded cases for ViTamin. Measured: at most
2e-6 apart.
"""

import copy
import json

import pytest
import torch
from golden_weights import case_weights
from safetensors.torch import load_file, save_file

from tokenflow import TokenFlowConfig, TokenFlowTokenizer
from tokenflow.tokenizer.contrastive import ImageTextModel, Vocabulary
from tokenflow.tokenizer.semantic import ClipEncoder
from tokenflow.tokenizer.teachers import (
    Teacher,
    load_teacher,
    new_teacher,
    start_from_teacher,
)
from tokenflow.tokenizer.transformer import (
    CLIP_MEAN,
    CLIP_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    InputScaling,
)

CLIP = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 12,
}
SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 30,  # not a multiple of the patch: 3 × 3 patches and a rest
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def close(ours, judge):
    torch.testing.assert_close(ours, judge, rtol=0, atol=1e-5)


def pictures(size, count=2):
    drawn = torch.randn(count, 3, size, size, generator=torch.manual_seed(1))
    return drawn.clamp(-1, 1)  # many of them at the borders of the range


def clip_folder(folder, **changes):
    """Write a random CLIP and return transformers' module."""
    import transformers

    vision = CLIP | changes
    config = transformers.CLIPConfig(
        text_config=TEXT | {"projection_dim": 12},
        vision_config=vision,
        projection_dim=12,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    return model


def siglip_folder(folder):
    import transformers

    config = transformers.SiglipConfig(text_config=TEXT, vision_config=SIGLIP)
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def clip_says(model, images):
    """What the published code takes: normalised patches, through the projection."""
    scaled = InputScaling(CLIP_MEAN, CLIP_STD)(images)
    states = model.vision_model(scaled).last_hidden_state[:, 1:]
    return model.visual_projection(model.vision_model.post_layernorm(states))


@torch.no_grad()
def siglip_says(model, images):
    scaled = InputScaling(SIGLIP_MEAN, SIGLIP_STD)(images)
    return model.vision_model(scaled, output_hidden_states=True).hidden_states[-2]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, clip_folder(folder)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    return folder, siglip_folder(folder)


def rewritten(folder, to, change=lambda weights: weights, **config):
    """Copy a folder with other weights or other words in its config.json."""
    to.mkdir()
    save_file(change(load_file(folder / "model.safetensors")), to / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    inner = values.get("vision_config", values)
    inner.update(config)
    (to / "config.json").write_text(json.dumps(values))
    return to


def test_clip_is_transformers_clip(clip):
    folder, judge = clip
    teacher = load_teacher(folder)
    assert (teacher.kind, teacher.width) == ("clip", 12)
    close(teacher(pictures(32)), clip_says(judge, pictures(32)))


def test_clip_without_its_text_half_is_the_same(clip, tmp_path):
    import transformers

    folder, _ = clip
    half = transformers.CLIPVisionModelWithProjection.from_pretrained(folder)
    half.save_pretrained(tmp_path)
    again = load_teacher(tmp_path)(pictures(32))
    assert torch.equal(again, load_teacher(folder)(pictures(32)))


def test_clip_under_the_names_of_openai_is_the_same(clip, tmp_path):
    folder, _ = clip
    teacher = load_teacher(folder)
    weights = {"visual.proj": teacher.head.weight.t().contiguous()}
    for name, value in teacher.encoder.state_dict().items():
        for ours, theirs in (
            ("blocks.", "transformer.resblocks."),
            ("norm1", "ln_1"),
            ("norm2", "ln_2"),
            ("attn.qkv.", "attn.in_proj_"),
            ("attn.proj", "attn.out_proj"),
            ("fc1", "c_fc"),
            ("fc2", "c_proj"),
        ):
            name = name.replace(ours, theirs)
        weights[f"visual.{name}"] = value
    weights["positional_embedding"] = torch.zeros(7, 16)  # that of the texts
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2}')
    again = load_teacher(tmp_path)
    assert torch.equal(again(pictures(32)), teacher(pictures(32)))


def test_siglip_is_transformers_siglip(siglip):
    folder, judge = siglip
    teacher = load_teacher(folder)
    assert (teacher.kind, teacher.width) == ("siglip", 32)
    close(teacher(pictures(30)), siglip_says(judge, pictures(30)))


def test_siglip_may_come_without_what_no_feature_depends_on(siglip, tmp_path):
    folder, _ = siglip
    unused = ("vision_model.head.", "vision_model.post_layernorm.")
    thin = rewritten(
        folder,
        tmp_path / "thin",
        lambda w: {k: v for k, v in w.items() if not k.startswith(unused)},
    )
    again = load_teacher(thin)(pictures(30))
    assert torch.equal(again, load_teacher(folder)(pictures(30)))


def test_siglip_in_shards_and_half_precision_is_read(siglip, tmp_path):
    folder, judge = siglip
    copy.deepcopy(judge).half().save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    teacher = load_teacher(tmp_path)
    assert teacher.encoder.patch_embedding.weight.dtype == torch.float32
    assert teacher(pictures(30)).dtype == torch.float32
    wanted = siglip_says(judge, pictures(30))
    torch.testing.assert_close(teacher(pictures(30)), wanted, rtol=0, atol=0.02)
    next(tmp_path.glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match="must have all its weights, .*00002"):
        load_teacher(tmp_path)


@pytest.mark.parametrize("prefix", ["", "visual.trunk."])
def test_vitamin_is_the_recorded_one(prefix, golden, tmp_path):
    case = golden("vitamin_0")
    weights = {prefix + key: value for key, value in case_weights(case).items()}
    for unused in ("head.proj.weight", "fc_norm.weight"):
        weights[prefix + unused] = torch.zeros(3)
    save_file(weights, tmp_path / "model.safetensors")
    arguments = {"model_args": {"num_heads": case.meta["heads"]}}
    (tmp_path / "config.json").write_text(json.dumps(arguments))
    teacher = load_teacher(tmp_path)
    assert (teacher.kind, teacher.width) == ("vitamin", 32)
    equal_one(teacher)
    scaling, x = teacher.encoder.scaling, golden("scaling_layers")
    torch.testing.assert_close(scaling(x["in/x"]), x["out/clip"])
    teacher.encoder.scaling = torch.nn.Identity()  # recorded without it
    close(teacher(case["in/x"]), case["out/y"])


def test_pictures_are_scaled_as_each_network_was_trained(clip, siglip, golden):
    case = golden("scaling_layers")
    of_clip = load_teacher(clip[0]).scaling(case["in/x"])
    torch.testing.assert_close(of_clip, case["out/clip"])
    of_siglip = load_teacher(siglip[0]).encoder.scaling(case["in/x"])
    torch.testing.assert_close(of_siglip, case["out/siglip"])


def contrastive(folder):
    torch.manual_seed(0)
    encoder = {"kind": "clip", "width": 32, "layers": 1, "heads": 2, "patch": 8}
    model = ImageTextModel(
        encoder | {"image_size": 32},
        Vocabulary.learn(["a red car", "two dogs"], 260),
        image_size=32,
        width=20,
        text={"width": 16, "layers": 1, "heads": 2, "length": 12},
    ).eval()
    model.save_pretrained(folder)
    return model


def test_a_trained_teacher_says_its_patches(tmp_path):
    model = contrastive(tmp_path)
    for source in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        teacher = load_teacher(source)
        assert (teacher.kind, teacher.width) == ("contrastive", 20)
        found = teacher(pictures(32))
        unit = torch.nn.functional.normalize(found, dim=-1)
        close(unit, model.encode_images(pictures(32))[1])


def equal_one(teacher):
    """Another teacher, made of plain values and weights alone."""
    made = new_teacher(json.loads(json.dumps(teacher.options)))
    made.load_state_dict(teacher.state_dict())
    assert (made.kind, made.width) == (teacher.kind, teacher.width)
    return made


def test_values_and_weights_are_all_that_a_teacher_is(clip, siglip, tmp_path):
    contrastive(tmp_path)
    for folder in (clip[0], siglip[0], tmp_path):
        teacher = load_teacher(folder)
        other = equal_one(teacher)
        assert torch.equal(other(pictures(32)), teacher(pictures(32)))


def test_a_teacher_is_frozen_whatever_is_asked_of_it(clip):
    teacher = load_teacher(clip[0])
    torch.nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    images = pictures(32).requires_grad_()
    assert not teacher(images).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert teacher(images).dtype == torch.float32
    assert teacher.grid(32, 32) == (4, 4)


def tokenizer(**encoder):
    config = TokenFlowConfig.preset(
        "mini",
        image_size=32,
        grid=4,
        scales=[1, 4],
        codebook_size=16,
        semantic_decoder={"width": 16, "grid": 4, "heads": 2},
        semantic_encoder={"width": 32, "layers": 2, "heads": 2, "patch": 8}
        | {"image_size": 32}
        | encoder,
    )
    return TokenFlowTokenizer(config)


def test_a_tokenizer_starts_as_its_teacher(clip):
    teacher, model = load_teacher(clip[0]), tokenizer()
    images = pictures(32)
    before = model.semantic_encoder(images)
    start_from_teacher(model, teacher)
    after = model.semantic_encoder(images)
    assert torch.equal(after, teacher.encoder(images)) and not torch.equal(
        after, before
    )
    assert after.requires_grad  # it goes on learning, and its teacher does not follow
    with torch.no_grad():
        model.semantic_encoder.conv1.weight.zero_()
    assert teacher.encoder.conv1.weight.any()


def test_a_tokenizer_of_other_sizes_is_refused_by_name(clip, siglip):
    teacher = load_teacher(clip[0])
    with pytest.raises(ValueError, match=r"the teacher: .* are not this .*blocks\.1\."):
        start_from_teacher(tokenizer(layers=1), teacher)
    with pytest.raises(ValueError, match=r"blocks.0.attn.proj.bias is \[32\] where"):
        start_from_teacher(tokenizer(width=16), teacher)
    with pytest.raises(ValueError, match="got ClipEncoder for SiglipEncoder"):
        start_from_teacher(tokenizer(), load_teacher(siglip[0]))


def test_what_is_no_teacher_is_said(clip, tmp_path):
    folder, _ = clip
    with pytest.raises(ValueError, match="kind must be one of .* got 'dino'"):
        load_teacher(folder, "dino")
    with pytest.raises(ValueError, match="must be a siglip tower, .* a clip tower"):
        load_teacher(folder, "siglip")
    with pytest.raises(ValueError, match="that `tokenflow train teacher` wrote"):
        load_teacher(folder, "contrastive")
    with pytest.raises(FileNotFoundError, match="a folder, a file or the id .*'none'"):
        load_teacher("none")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"must hold weights .*\['notes.txt'\]"):
        load_teacher(tmp_path)
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"vision tower; of its 1 .*\['a.weight'\]"):
        load_teacher(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_teacher(tmp_path)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"hidden_act": "gelu"}, "hidden_act must be one of .* says 'gelu'"),
        ({"num_hidden_layers": 3}, "num_hidden_layers = 3, its weights have 2"),
        ({"hidden_size": 64}, "hidden_size = 64, its weights have 32"),
        ({"image_size": 64}, "16 positions must be the square .* says 64 and 8"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_named(clip, tmp_path, config, words):
    with pytest.raises(ValueError, match=words):
        load_teacher(rewritten(clip[0], tmp_path / "other", **config))


@pytest.mark.parametrize(
    "name, words",
    [
        ("vision_model.encoder.layers.1.layer_norm2.bias", "blocks.1.norm2.bias"),
        ("vision_model.encoder.layers.0.self_attn.k_proj.bias", "blocks.0.attn.qkv"),
        ("vision_model.embeddings.patch_embedding.weight", "conv1.weight"),
        ("visual_projection.weight", "visual projection"),
    ],
)
def test_a_missing_weight_is_named(clip, tmp_path, name, words):
    def without(weights):
        return {key: value for key, value in weights.items() if key != name}

    with pytest.raises(ValueError, match=words):
        load_teacher(rewritten(clip[0], tmp_path / "other", without))


def test_heads_that_nothing_tells_are_asked_for(clip, tmp_path):
    folder = rewritten(clip[0], tmp_path / "other")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="say num_attention_heads; .* a width of 32"):
        load_teacher(folder)


def test_vitamin_with_positions_is_refused_by_name(golden, tmp_path):
    case = golden("vitamin_0")
    weights = case_weights(case) | {"pos_embed": torch.zeros(1, 16, 32)}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_args": {"num_heads": 4}}')
    with pytest.raises(ValueError, match=r"1 are not this model's: \['pos_embed'\]"):
        load_teacher(tmp_path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_an_id_of_the_hub_is_read_from_the_cache(siglip, cache):
    folder, judge = siglip
    place = cache / "models--someone--a-teacher"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_bytes((folder / name).read_bytes())
    teacher = load_teacher("someone/a-teacher")
    close(teacher(pictures(30)), siglip_says(judge, pictures(30)))


def test_an_id_that_is_not_there_offline_says_so(cache):
    with pytest.raises(OSError, match="nobody/nothing must be in the cache .*OFFLINE"):
        load_teacher("nobody/nothing")


def test_what_is_no_picture_is_refused():
    teacher = Teacher("clip", ClipEncoder(16, 1, 2, 8, 16))
    with pytest.raises(TypeError, match="floats in .* got torch.uint8"):
        teacher(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\].* got \[1, 1, 16, 16\]"):
        teacher(torch.zeros(1, 1, 16, 16))
