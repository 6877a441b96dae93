"""`.tok` files: what goes in comes out, and nothing else is taken for one."""

import json
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tokenflow.tokenizer import tokfile
from tokenflow.tokenizer.tokfile import Tokens

SCALES = ((1, 1), (2, 3))


def make(codebook_size=4096, indices=(0, 1, 2, 3, 4, 5, 4095), size=(32, 48)):
    return Tokens(torch.tensor(indices), SCALES, codebook_size, "0123abcd", size)


def same(one, other):
    plain = [{k: v for k, v in vars(t).items() if k != "indices"} for t in (one, other)]
    return plain[0] == plain[1] and torch.equal(one.indices, other.indices)


@pytest.mark.parametrize(
    ("codebook_size", "indices", "dtype"),
    [
        (4096, (0, 1, 2, 3, 4, 5, 4095), "U16"),
        (65536, (0, 1, 2, 3, 4, 5, 65535), "U16"),
        (65537, (0, 1, 2, 3, 4, 5, 65536), "I32"),
        (4096, (-1, 1, 2, 3, 4, 5, 4095), "I32"),  # no entry was near a broken feature
    ],
)
def test_tokens_come_back_and_are_small(tmp_path, codebook_size, indices, dtype):
    path = tmp_path / "new" / "one.tok"
    tokens = make(codebook_size, indices)
    tokfile.save(path, tokens)
    assert same(tokfile.load(path), tokens)
    assert tokfile.load(path).indices.dtype == torch.int64
    with safe_open(path, framework="pt") as file:
        assert file.get_slice("indices").get_dtype() == dtype
    assert path.stat().st_size < 1000


def test_the_metadata_says_how_to_read_it(tmp_path):
    tokfile.save(tmp_path / "one.tok", make())
    with safe_open(tmp_path / "one.tok", framework="pt") as file:
        assert file.metadata() == {
            "format": "tokenflow-tok",
            "version": "1",
            "scales": "[[1, 1], [2, 3]]",
            "codebook_size": "4096",
            "model": "0123abcd",
            "size": "[32, 48]",
        }


def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        tokfile.save(tmp_path / "one.tok", make())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "one.tok").stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "one.tok"
    tokfile.save(path, make())
    before = path.read_bytes()

    def full(beside, content):
        beside.open("wb").write(content[:100])
        raise OSError("no space left")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        tokfile.save(path, make(indices=(5,) * 7))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": (1, 2)}, r"indices must be \[7\]"),
        ({"indices": (0,) * 6 + (4096,)}, r"in \[0, 4096\).* got 0 to 4096"),
        ({"indices": (0,) * 6 + (-2,)}, "got -2 to 0"),
        ({"size": (0, 8)}, "size must be positive"),
        ({"size": (10**6, 10**6)}, "at most 100,000,000 pixels"),
    ],
)
def test_tokens_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_both_hashes_are_in_the_refusal():
    make().check_model("0123abcd", 4096)
    with pytest.raises(ValueError, match="model 0123abcd .* this one, 4567ef00"):
        make().check_model("4567ef00", 4096)
    with pytest.raises(ValueError, match="of 8192 entries .* got 4096"):
        make().check_model("0123abcd", 8192)


@pytest.mark.parametrize("length", [0, 5, 60, 200, -1])
def test_a_truncated_file_is_named(tmp_path, length):
    path = tmp_path / "one.tok"
    tokfile.save(path, make())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"one.tok must be a whole .tok file"):
        tokfile.load(path)


@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_another_kind_of_file_is_named(tmp_path, content):
    path = tmp_path / "one.tok"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"one.tok must be a whole .tok file"):
        tokfile.load(path)


def test_other_safetensors_are_named(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "a.tok", {"format": "pt"})
    with pytest.raises(ValueError, match=r"a.tok must be .* another kind"):
        tokfile.load(tmp_path / "a.tok")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", "2", "version 1, got 2"),
        ("size", None, "'size' is missing"),
        ("size", "[1]", "damaged"),
        ("size", '["a", "b"]', "damaged"),
        ("scales", "[[1, 1]]", r"indices must be \[1\]"),
        ("scales", "[[0, 1]]", "scales"),
        ("scales", "nonsense", "damaged"),
        ("codebook_size", "many", "damaged"),
        ("codebook_size", "4", r"in \[0, 4\)"),
        ("model", None, "'model' is missing"),
    ],
)
def test_damaged_metadata_is_named(tmp_path, key, value, message):
    path = tmp_path / "one.tok"
    tokfile.save(path, make())
    with safe_open(path, framework="pt") as file:
        metadata, indices = file.metadata(), file.get_tensor("indices")
    metadata = {k: v for k, v in metadata.items() if k != key}
    save_file({"indices": indices}, path, metadata | ({key: value} if value else {}))
    with pytest.raises(ValueError, match=message) as caught:
        tokfile.load(path)
    assert "one.tok" in str(caught.value)


@pytest.mark.parametrize("indices", [torch.rand(7), torch.zeros(1, 7).int()])
def test_indices_of_another_kind_are_refused(tmp_path, indices):
    path = tmp_path / "one.tok"
    metadata = {
        "format": "tokenflow-tok",
        "version": "1",
        "scales": json.dumps(SCALES),
        "codebook_size": "8",
        "model": "x",
        "size": "[8, 8]",
    }
    save_file({"indices": indices}, path, metadata)
    with pytest.raises(ValueError, match="indices must be"):
        tokfile.load(path)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        tokfile.load(tmp_path / "one.tok")
