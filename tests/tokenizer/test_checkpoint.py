"""Published files go in whole or not at all, and nothing half-written stays."""

import argparse
import os
import pickle

import pytest
import torch
from golden_weights import hash_weight

from tokenflow import TokenFlowConfig, TokenFlowTokenizer, checkpoint

TINY = {
    "image_size": 32,
    "grid": 4,
    "scales": [1, 2, 4],
    "semantic_decoder": {"width": 24, "grid": 4, "depth": 1, "heads": 4},
    "semantic_target": 12,
    "pixel_encoder": {"width": 32, "multipliers": [1, 1, 1, 1], "blocks": 1},
    "pixel_decoder": {"width": 32, "multipliers": [1, 1, 1, 1], "blocks": 1},
    "pixel_latent": 16,
    "codebook_size": 64,
}
ENCODERS = {
    "clip": {"width": 32, "layers": 2, "heads": 4, "patch": 8, "image_size": 32},
    "siglip": {
        "width": 32,
        "layers": 2,
        "heads": 4,
        "mlp_width": 48,
        "patch": 8,
        "image_size": 32,
    },
    "vitamin": {
        "width": 32,
        "stem_widths": [8, 16],
        "stem_depths": [1, 2],
        "layers": 2,
        "heads": 4,
    },
}


def tiny_config(kind="clip"):
    changes = {"image_size": 64} if kind == "vitamin" else {}
    if kind == "vitamin":
        pixel = {"width": 32, "multipliers": [1, 1, 1, 1, 1], "blocks": 1}
        changes.update(pixel_encoder=pixel, pixel_decoder=pixel)
    encoder = {"kind": kind, **ENCODERS[kind]}
    return TokenFlowConfig(**{**TINY, **changes, "semantic_encoder": encoder})


def tiny(kind="clip"):
    torch.manual_seed(0)
    return TokenFlowTokenizer(tiny_config(kind)).eval()


def published(tokenizer):
    """The tokenizer's weights as a published file names them."""
    kind = tokenizer.config.semantic_encoder["kind"]
    return checkpoint.to_upstream(tokenizer.state_dict(), kind)


def same_weights(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def wrapped(weights, container):
    if container is None:
        return weights
    arguments = argparse.Namespace(lr=1e-4, vq_model="TokenFlow", mult=[1, 2])
    rest = {"steps": 5, "args": arguments, "optimizer": {"state": {}, "groups": [1]}}
    older = {key: value + 1 for key, value in weights.items()}
    if container == "ema":  # the first present is taken
        rest["model"] = older
    return {**rest, container: weights}


@pytest.mark.parametrize("kind", ENCODERS)
def test_names_go_there_and_back(kind):
    tokenizer = tiny(kind)
    for key in tokenizer.state_dict():
        theirs = checkpoint.upstream_name(key, kind)
        assert checkpoint.our_name(theirs, kind) == key
    assert len(published(tokenizer)) == len(tokenizer.state_dict()) + 1


@pytest.mark.parametrize("container", ["ema", "model", "state_dict", None])
@pytest.mark.parametrize("marks", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_every_container_and_prefix_is_read(tmp_path, container, marks):
    tokenizer = tiny()
    weights = {marks + key: value for key, value in published(tokenizer).items()}
    path = tmp_path / "upstream.pt"
    torch.save(wrapped(weights, container), path)
    read = TokenFlowTokenizer.from_upstream(path, config=tiny_config())
    assert same_weights(read, tokenizer)
    assert not read.training


def test_records_of_training_are_left_out(tmp_path):
    tokenizer, path = tiny(), tmp_path / "kmeans.pt"
    weights = published(tokenizer)
    weights["quantize.embedding_vqkd.initted"] = torch.ones(1)
    weights["quantize.embedding_vqkd.cluster_size"] = torch.ones(64)
    weights["quantize.embedding_vqkd.embed_avg"] = torch.ones(64, 32)
    torch.save(weights, path)
    read = TokenFlowTokenizer.from_upstream(path, config=tiny_config())
    assert same_weights(read, tokenizer)


def test_half_precision_files_become_float32(tmp_path):
    path = tmp_path / "half.pt"
    torch.save({key: v.half() for key, v in published(tiny()).items()}, path)
    read = TokenFlowTokenizer.from_upstream(path, config=tiny_config())
    assert {value.dtype for value in read.state_dict().values()} == {torch.float32}


def test_the_frozen_tail_of_siglip_may_be_missing(tmp_path):
    tokenizer, path = tiny("siglip"), tmp_path / "short.pt"
    tail = ("encoder.layers.1.", "post_layernorm", ".head.")
    weights = {
        key: value
        for key, value in published(tokenizer).items()
        if not any(word in key for word in (*tail, "scaling_layer"))
    }
    assert len(weights) < len(published(tokenizer)) - 20
    torch.save(weights, path)
    read = TokenFlowTokenizer.from_upstream(path, config=tiny_config("siglip"))
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(read.encode(image).indices, tokenizer.encode(image).indices)
    del weights["encoder_vqkd.vision_model.encoder.layers.0.layer_norm1.weight"]
    torch.save(weights, path)
    with pytest.raises(ValueError, match=r"1 weights are missing.*layers\.0"):
        TokenFlowTokenizer.from_upstream(path, config=tiny_config("siglip"))


def test_names_and_shapes_that_differ_are_told(tmp_path):
    path = tmp_path / "other.pt"
    weights = published(tiny())
    del weights["quant_conv.bias"], weights["decoder.mid.0.conv1.weight"]
    weights["decoder.extra"] = torch.zeros(1)
    torch.save({"model": weights}, path)
    with pytest.raises(ValueError) as caught:
        TokenFlowTokenizer.from_upstream(path, config=tiny_config())
    message = str(caught.value)
    assert "other.pt: 2 weights are missing: ['decoder.mid.0.conv1.weight', " in message
    assert "1 are not this model's: ['decoder.extra']" in message
    weights = published(tiny())
    weights["quant_conv.weight"] = torch.zeros(8, 17, 1, 1)
    torch.save({"model": weights}, path)
    with pytest.raises(ValueError, match=r"quant_conv\.weight is \[8, 17, 1, 1\]"):
        TokenFlowTokenizer.from_upstream(path, config=tiny_config())


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "cut.pt"
    torch.save({"model": published(tiny())}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cut\.pt must be a whole PyTorch file"):
        checkpoint.read_upstream(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04"])
def test_a_file_of_something_else_is_named(tmp_path, content):
    path = tmp_path / "else.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"else\.pt must"):
        checkpoint.read_upstream(path)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        checkpoint.read_upstream(tmp_path / "gone.pt")


class Harm:
    """Unpickling this would run a command."""

    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_never_run(tmp_path, zipped, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    content = {"model": published(tiny()), "args": Harm()}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil\.pt must hold .* \w+\.system$"):
        checkpoint.read_upstream(path)
    path.write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ValueError, match=r"evil\.pt must"):
        checkpoint.read_upstream(path)
    assert not (tmp_path / "harmed").exists()


def test_a_dict_without_weights_is_described(tmp_path):
    path = tmp_path / "log.pt"
    torch.save({"steps": 3, "loss": [0.1]}, path)
    with pytest.raises(ValueError, match=r"log\.pt must hold weights.*'steps', 'loss'"):
        checkpoint.read_upstream(path)


def test_weights_of_another_model_are_described():
    weights = {"layer.weight": torch.zeros(2, 2)}
    with pytest.raises(
        ValueError, match=r"some\.pt must be a TokenFlow.*layer\.weight"
    ):
        checkpoint.recognise(weights, "some.pt")


@pytest.mark.parametrize(
    ("preset", "enhanced"),
    [
        ("clip_b_224", False),
        ("clip_b_256_enhanced", True),
        ("vitamin_xl_256", False),
        ("vitamin_xl_256", True),
        ("siglip_so400m_384", False),
        ("siglip_so400m_384", True),
    ],
)
def test_presets_are_recognised_by_their_shapes(preset, enhanced):
    config = TokenFlowConfig.preset(preset, enhanced=enhanced, codebook_size=8192)
    with torch.device("meta"):
        tokenizer = TokenFlowTokenizer(config)
    assert checkpoint.recognise(published(tokenizer)).to_dict() == config.to_dict()


@pytest.mark.slow
def test_a_published_file_converts_to_a_folder(tmp_path):
    config = TokenFlowConfig.preset("clip_b_256_enhanced")
    with torch.device("meta"):
        keys = published(TokenFlowTokenizer(config))
    weights = {key: hash_weight(key, value.shape) for key, value in keys.items()}
    path, folder = tmp_path / "tokenflow_clipb_32k_enhanced.pt", tmp_path / "folder"
    torch.save(wrapped(weights, "model"), path)
    TokenFlowTokenizer.from_upstream(path).save_pretrained(folder)
    path.unlink()
    read = TokenFlowTokenizer.from_pretrained(folder)
    assert read.config.scales[-1] == 16
    back = published(read)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    first = tiny()
    first.save_pretrained(folder)
    (folder / "README.md").write_text("a model card")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    second = TokenFlowTokenizer(tiny_config()).eval()
    with monkeypatch.context() as patch:
        patch.setattr(type(second.config), "save_pretrained", full_disk)
        with pytest.raises(OSError, match="No space"):
            second.save_pretrained(folder)
        with pytest.raises(OSError, match="No space"):
            second.save_pretrained(tmp_path / "new")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    second.save_pretrained(folder)
    assert same_weights(TokenFlowTokenizer.from_pretrained(folder), second)
    assert (folder / "README.md").read_text() == "a model card"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_shards_and_a_whole_file_replace_each_other(tmp_path):
    whole, shards = tiny(), TokenFlowTokenizer(tiny_config()).eval()
    assert not same_weights(whole, shards)
    whole.save_pretrained(tmp_path)
    (tmp_path / "model.other.safetensors").write_text("somebody else's")
    shards.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert same_weights(TokenFlowTokenizer.from_pretrained(tmp_path), shards)
    whole.save_pretrained(tmp_path)
    assert same_weights(TokenFlowTokenizer.from_pretrained(tmp_path), whole)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["config.json", "model.other.safetensors", "model.safetensors"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(NotADirectoryError, match="taken must be a folder"):
        tiny().save_pretrained(tmp_path / "taken")
