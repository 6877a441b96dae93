"""A tokenizer that is named is loaded with the model, and not saved with it."""

import json

import pytest
import tiny_understanding as tiny
import torch
from safetensors.torch import load_file, save_file

from tokenflow import TokenFlowForUnderstanding, checkpoint
from tokenflow._language import AutoModelForImageTextToText
from tokenflow.understanding import named

ASKED = (tiny.picture(), "What is it?")
ASK = {"max_new_tokens": 5}


@pytest.fixture
def known(monkeypatch, tmp_path):
    """A shipped tokenizer called "eyes"."""
    monkeypatch.setattr(checkpoint.files, "SHIPPED", tmp_path / "weights")
    tiny.eyes().save_pretrained(tmp_path / "weights" / "eyes")
    return "eyes"


@pytest.fixture
def model(known):
    made = tiny.model()
    made.config.image_tokenizer = known
    return made


def test_the_folder_holds_a_name_and_no_weights_of_it(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved and not [key for key in saved if key.startswith(named.PREFIX)]
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["image_tokenizer"] == "eyes"
    assert config["image_digest"] == named.digest(model.tokenizer.state_dict())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_it_comes_back_whole(model, tmp_path, dtype, shard):
    model.save_pretrained(tmp_path / "saved", dtype=dtype, max_shard_size=shard)
    wide = TokenFlowForUnderstanding.from_pretrained(
        tmp_path / "saved", dtype=torch.float32
    )
    theirs = model.state_dict()
    for key, value in wide.state_dict().items():
        seen = key.startswith(named.PREFIX)
        rounded = theirs[key] if dtype is None or seen else theirs[key].to(dtype)
        assert torch.equal(value, rounded.to(value.dtype)), key
    assert not any(p.requires_grad for p in wide.tokenizer.parameters())
    if dtype is None:
        assert wide.answer(*ASKED, **ASK) == model.answer(*ASKED, **ASK)
    auto = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "saved", dtype="auto", device_map="auto"
    )
    assert auto.dtype == (dtype or torch.float32)
    assert {p.dtype for p in auto.tokenizer.parameters()} == {torch.float32}
    assert auto.answer(*ASKED, **ASK)


def test_one_that_was_changed_is_saved_with_the_rest(model, tmp_path):
    with torch.no_grad():
        next(model.tokenizer.parameters()).add_(1)
    model.save_pretrained(tmp_path / "saved")
    again = TokenFlowForUnderstanding.from_pretrained(tmp_path / "saved")
    assert again.config.image_tokenizer is None
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


@pytest.mark.parametrize("part", named.PARTS)
def test_another_one_of_that_name_is_refused(model, tmp_path, part):
    model.save_pretrained(tmp_path / "saved")
    other = tiny.eyes()
    with torch.no_grad():
        next(getattr(other, part).parameters()).add_(1)
    other.save_pretrained(tmp_path / "weights" / "eyes")
    with pytest.raises(ValueError, match="'eyes' must make the tokens that"):
        TokenFlowForUnderstanding.from_pretrained(tmp_path / "saved")
    tiny.eyes().save_pretrained(tmp_path / "right")
    read = TokenFlowForUnderstanding.from_pretrained(
        tmp_path / "saved", image_tokenizer=str(tmp_path / "right")
    )
    assert read.answer(*ASKED, **ASK) == model.answer(*ASKED, **ASK)
    read.save_pretrained(tmp_path / "again")  # with the weights: a folder may move
    again = TokenFlowForUnderstanding.from_pretrained(tmp_path / "again")
    assert again.config.image_tokenizer is None
    assert again.answer(*ASKED, **ASK) == model.answer(*ASKED, **ASK)


def test_another_decoder_is_none_of_its_business(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    other = tiny.eyes()
    with torch.no_grad():
        next(other.pixel_decoder.parameters()).add_(1)
    other.save_pretrained(tmp_path / "weights" / "eyes")
    read = TokenFlowForUnderstanding.from_pretrained(tmp_path / "saved")
    assert read.answer(*ASKED, **ASK) == model.answer(*ASKED, **ASK)


def test_nothing_is_lost_where_the_name_leads_nowhere(model, tmp_path):
    (tmp_path / "weights" / "eyes" / "config.json").unlink()
    model.save_pretrained(tmp_path / "saved")
    read = TokenFlowForUnderstanding.from_pretrained(tmp_path / "saved")
    assert read.answer(*ASKED, **ASK) == model.answer(*ASKED, **ASK)


def test_a_state_dict_without_a_tokenizer_changes_no_name(model, tmp_path):
    state = {k: v for k, v in model.state_dict().items() if named.PREFIX not in k}
    model.save_pretrained(tmp_path / "saved", state_dict=state)
    read = TokenFlowForUnderstanding.from_pretrained(tmp_path / "saved")
    assert read.answer(*ASKED, **ASK) == model.answer(*ASKED, **ASK)


def test_a_missing_one_is_told(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "weights" / "eyes" / "config.json").unlink()
    with pytest.raises(OSError, match="'eyes'"):
        TokenFlowForUnderstanding.from_pretrained(tmp_path / "saved")


def test_other_weights_that_are_missing_are_told(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    weights = load_file(file)
    weights.pop("projector.0.weight")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"projector\.0\.weight"):
        TokenFlowForUnderstanding.from_pretrained(tmp_path / "saved")


def test_one_that_is_nowhere_is_told(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    parts = {"tokenizer": "disk", "projector": "cpu", "language_model": "cpu"}
    with pytest.raises(RuntimeError, match="tokenizer must be on a device"):
        TokenFlowForUnderstanding.from_pretrained(
            tmp_path / "saved", device_map=parts, offload_folder=tmp_path
        )
