"""`tokenflow encode`: every picture becomes the tokens the model gives it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenflow.tokenizer import tokfile
from tokenflow.tokenizer.processing import fit


@pytest.mark.parametrize("batch_size", [2, 16])
def test_the_files_hold_the_models_tokens(run, photos, model, tokenizer, batch_size):
    words = ("encode", "photos", "-o", "tokens", "-m", model, "-b", batch_size)
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    names = ["deep/deeper/one.png", "one.png", "two.JPG"]
    pictures = [Image.open(photos / name) for name in names]
    batches = [pictures[:batch_size], pictures[batch_size:]]
    expected = [tokenizer.encode(batch) for batch in batches if batch]
    indices = torch.cat([encoded.indices for encoded in expected])
    for name, row in zip(names, indices, strict=True):
        tokens = tokfile.load(Path("tokens", name).with_suffix(".tok"))
        assert torch.equal(tokens.indices, row)
        assert tokens.scales == expected[0].scales and tokens.size == (64, 64)
        assert tokens.codebook_size == 256
        assert tokens.fingerprint == tokenizer.fingerprint()
    assert out.splitlines()[-1] == "photos/two.JPG -> tokens/two.tok  130 tokens, " + (
        f"{Path('tokens/two.tok').stat().st_size} bytes"
    )


def test_json_tells_the_same(run, photos, model, tokenizer):
    code, out, err = run("encode", "photos", "-o", "tokens", "-m", model, "--json")
    result = json.loads(out)
    assert (code, err) == (0, "") and result["failed"] == []
    assert result["fingerprint"] == tokenizer.fingerprint()
    assert [entry["output"] for entry in result["done"]] == [
        "tokens/deep/deeper/one.tok",
        "tokens/one.tok",
        "tokens/two.tok",
    ]
    assert {entry["tokens"] for entry in result["done"]} == {130}


def test_broken_pictures_are_listed_and_the_others_done(run, photos, model):
    good = (photos / "one.png").read_bytes()
    (photos / "cut.png").write_bytes(good[: len(good) // 2])
    (photos / "text.png").write_text("no picture")
    (photos / "empty.png").touch()
    Image.new("RGB", (1, 500)).save(photos / "strip.png")
    code, out, err = run("encode", "photos", "gone.png", "-o", "tokens", "-m", model)
    assert code == 1 and len(out.splitlines()) == 3
    lines = err.splitlines()
    assert [line.split(": ")[:2] for line in lines[:-1]] == [
        ["failed", "photos/cut.png"],
        ["failed", "photos/empty.png"],
        ["failed", "photos/strip.png"],
        ["failed", "photos/text.png"],
        ["failed", "gone.png"],
    ]
    assert "truncated" in lines[0] and "100 times longer" in lines[2]
    assert "No such file" in lines[4] and lines[5] == "5 of 8 failed"
    made = [path.name for path in Path("tokens").rglob("*") if path.is_file()]
    assert sorted(made) == ["one.tok", "one.tok", "two.tok"]


def test_a_batch_of_broken_pictures_is_passed_over(run, photos, model):
    (photos / "a.png").write_text("no picture")
    code, out, _ = run("encode", "photos", "-o", "tokens", "-m", model, "-b", "1")
    assert code == 1 and len(out.splitlines()) == 3


def test_device_is_where_it_runs(run, photos, model, device):
    words = ("encode", "photos", "-o", "tokens", "-m", model, "--device", device)
    code, out, err = run(*words)
    assert (code, err) == (0, "") and len(out.splitlines()) == 3
    words = ("decode", "tokens", "-o", "drawn", "-m", model, "--device", device)
    assert run(*words).code == 0
    code, out, _ = run("demo", "-m", model, "--device", device)
    assert code == 0 and f"\ndevice   {device}" in out


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_resize_is_the_tokenizers(run, photos, model, tokenizer, resize):
    words = ("encode", "photos/two.JPG", "-o", "tokens", "-m", model)
    assert run(*words, "--resize", resize).code == 0
    seen = fit(Image.open(photos / "two.JPG"), 64, resize)
    expected = tokenizer.encode(seen).indices[0]
    assert torch.equal(tokfile.load("tokens/two.tok").indices, expected)


def test_results_that_are_there_stay_unless_asked(run, photos, model):
    words = ("encode", "photos", "-o", "tokens", "-m", model)
    assert run(*words).code == 0
    before = Path("tokens/one.tok").stat().st_mtime_ns
    code, out, err = run(*words)
    assert (code, out) == (2, "") and "--overwrite" in err
    assert Path("tokens/one.tok").stat().st_mtime_ns == before
    assert run(*words, "--overwrite").code == 0
    assert Path("tokens/one.tok").stat().st_mtime_ns > before


def test_a_result_that_cannot_be_written_is_a_failure(run, photos, model):
    Path("tokens").mkdir()
    Path("tokens/deep").write_text("a file where a folder must be")
    code, out, err = run("encode", "photos", "-o", "tokens", "-m", model)
    assert code == 1 and len(out.splitlines()) == 2
    assert err.startswith("failed: photos/deep/deeper/one.png: ")


def test_odd_pictures_of_every_kind_are_taken(run, photos, model):
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 65536, (70, 70)).astype(np.uint16))
    grey.save(photos / "deep.tiff")
    grey.convert("L").convert("P").save(photos / "palette.gif")
    Image.new("RGBA", (65, 70), (9, 99, 9, 99)).save(photos / "clear.webp")
    Image.new("1", (64, 64), 1).save(photos / "bits.pbm")
    code, out, err = run("encode", "photos", "-o", "tokens", "-m", model)
    assert (code, err) == (0, "") and len(out.splitlines()) == 7


def test_a_name_that_is_no_text_is_worked_on(run, photos, model):
    odd = photos / "caf\udce9.png"  # bytes that are not UTF-8
    try:
        (photos / "one.png").rename(odd)
    except OSError:
        pytest.skip("this file system has no such names")
    code, out, _ = run("encode", "photos", "-o", "tokens", "-m", model)
    assert code == 0 and len(out.splitlines()) == 3
    assert Path("tokens/caf\udce9.tok").is_file()
