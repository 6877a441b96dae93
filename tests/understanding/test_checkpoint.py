"""Published understanding models go in whole, or what is wrong with them is named."""

import json
import shutil

import pytest
import tiny_understanding as tiny
import torch
from safetensors.torch import load_file, save_file

from tokenflow import TokenFlowForUnderstanding, checkpoint

FAMILIES = {"llava_qwen": "qwen2", "llava_llama": "llama"}
ASKED = (tiny.picture(), "What is it?")


def published(folder, kind="llava_qwen", *, tower=False, words=True, **settings):
    """Write a model as LLaVA's code does; return ours with the same weights."""
    model = tiny.model(FAMILIES[kind])
    state = model.state_dict()
    weights = {
        checkpoint.upstream_understanding_name(key): value.contiguous()
        for key, value in state.items()
        if not key.startswith("tokenizer.")
    }
    if tower:
        inside = checkpoint.to_upstream(model.tokenizer.state_dict(), "siglip")
        prefix = "model.vision_tower.vision_tower."
        weights |= {prefix + key: value.contiguous() for key, value in inside.items()}
    folder.mkdir()
    names = sorted(weights)
    parts = [names[::2], names[1::2]]
    index = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({n: weights[n] for n in part}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )
    config = {
        **tiny.TEXT,
        "model_type": kind,
        "architectures": ["Llava"],
        "torch_dtype": "bfloat16",
        "mm_vision_tower": "",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 40,
        "image_aspect_ratio": "pad",
        "tokenizer_model_max_length": 2048,
        "use_mm_proj": True,
        **settings,
    }
    (folder / "config.json").write_text(json.dumps(config))
    if words:
        tiny.words().save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("tower", [False, True])
def test_a_published_folder_is_read(tmp_path, kind, tower):
    model = published(tmp_path / "llava", kind, tower=tower)
    given = {"tokenizer_config": model.config.tokenizer_config}
    given = given if tower else {"tokenizer": tiny.eyes()}
    assert checkpoint.is_llava(tmp_path / "llava")
    read = TokenFlowForUnderstanding.from_upstream(tmp_path / "llava", **given)
    ours, theirs = read.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert read.processor.resize == "pad" and not read.training
    frame = {"llava_qwen": "qwen_2_5", "llava_llama": "vicuna_v1"}[kind]
    assert read.processor.template == frame
    model.processor.template = frame
    assert read.answer(*ASKED, max_new_tokens=5) == model.answer(
        *ASKED, max_new_tokens=5
    )
    read.save_pretrained(tmp_path / "ours")
    again = TokenFlowForUnderstanding.from_pretrained(tmp_path / "ours")
    assert again.answer(*ASKED, max_new_tokens=5) == model.answer(
        *ASKED, max_new_tokens=5
    )


def test_weights_keep_their_dtype_and_the_tokenizer_float32(tmp_path):
    published(tmp_path / "llava")
    for file in (tmp_path / "llava").glob("*.safetensors"):
        narrow = {key: value.bfloat16() for key, value in load_file(file).items()}
        save_file(narrow, file, {"format": "pt"})
    read = TokenFlowForUnderstanding.from_upstream(tmp_path / "llava", tiny.eyes())
    assert {p.dtype for p in read.language_model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in read.tokenizer.parameters()} == {torch.float32}


def test_pictures_are_squashed_where_the_settings_name_no_padding(tmp_path):
    published(tmp_path / "llava", image_aspect_ratio=None)
    read = TokenFlowForUnderstanding.from_upstream(tmp_path / "llava", tiny.eyes())
    assert read.processor.resize == "squash"


def changed(folder, change):
    file = folder / "model-00001-of-00002.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})
    (folder / "model.safetensors.index.json").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), r"1 weights are missing: \['lm_head.wei"),
        (
            lambda w: w.update({"model.extra": torch.zeros(1)}),
            r"1 are not this model's: \['model.extra'\]",
        ),
        (
            lambda w: w.update({"lm_head.weight": torch.zeros(3, 32)}),
            r"lm_head.weight is \[3, 32\] where \[261, 32\] is expected",
        ),
    ],
)
def test_names_and_shapes_that_differ_are_told(tmp_path, change, message):
    published(tmp_path / "llava")
    changed(tmp_path / "llava", change)
    with pytest.raises(ValueError, match=message):
        TokenFlowForUnderstanding.from_upstream(tmp_path / "llava", tiny.eyes())


def test_a_missing_tokenizer_is_told(tmp_path):
    published(tmp_path / "llava")
    with pytest.raises(ValueError, match="must come with an image tokenizer"):
        TokenFlowForUnderstanding.from_upstream(tmp_path / "llava")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model_type": "bert"},
            r"of a type in \['llava_qwen', .* got 'bert'",
        ),
        ({"mm_projector_type": "linear"}, "mlp2x_gelu, got 'linear'"),
    ],
)
def test_another_kind_of_model_is_told(tmp_path, settings, message):
    published(tmp_path / "llava", **settings)
    with pytest.raises(ValueError, match=message):
        TokenFlowForUnderstanding.from_upstream(tmp_path / "llava", tiny.eyes())


@pytest.fixture
def aligned(tmp_path):
    """mm_projector.bin of stage 1, and the language model it belongs to."""
    model = tiny.model(template="plain")
    weights = {
        f"base_model.model.mm_projector.{key}": value
        for key, value in model.projector.state_dict().items()
    }
    torch.save(weights, tmp_path / "mm_projector.bin")
    model.language_model.save_pretrained(tmp_path / "language")
    tiny.words().save_pretrained(tmp_path / "language")
    return model, tmp_path


def test_a_projector_goes_with_a_language_model(aligned):
    model, folder = aligned
    read = TokenFlowForUnderstanding.from_upstream(
        folder / "mm_projector.bin", tiny.eyes(), language_model=folder / "language"
    )
    asked = {"max_new_tokens": 5}
    assert read.processor.template == "plain"
    assert read.answer(*ASKED, **asked) == model.answer(*ASKED, **asked)
    source = folder / "mm_projector.bin"
    with pytest.raises(ValueError, match="a projector alone"):
        TokenFlowForUnderstanding.from_upstream(source, tiny.eyes())
    torch.save({"mm_projector.0.weight": torch.zeros(32, 39)}, source)
    with pytest.raises(ValueError, match="3 weights are missing.*mm_projector.0.bias"):
        TokenFlowForUnderstanding.from_upstream(
            source, tiny.eyes(), language_model=folder / "language"
        )
    torch.save({"layer.weight": torch.zeros(1)}, source)
    with pytest.raises(ValueError, match="must hold a projector"):
        TokenFlowForUnderstanding.from_upstream(source, tiny.eyes(), language_model="x")


def test_a_text_to_image_folder_is_another_kind(tmp_path):
    published(tmp_path / "llava", "llava_llama")
    shutil.copytree(tmp_path / "llava", tmp_path / "drawer")
    table = {"model.lvl_embed.weight": torch.zeros(10, 32)}
    changed(tmp_path / "drawer", lambda weights: weights.update(table))
    assert checkpoint.is_llava(tmp_path / "llava")
    assert not checkpoint.is_llava(tmp_path / "drawer")
