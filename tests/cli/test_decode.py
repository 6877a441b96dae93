"""`tokenflow decode`: the right model redraws, another is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenflow.tokenizer import tokfile
from tokenflow.tokenizer.processing import to_pil


@pytest.fixture
def tokens(photos, tokenizer):
    """tokens/one.tok and tokens/deep/two.tok, and what they decode to."""
    drawn = {}
    for name, source in {"one": "one.png", "deep/two": "two.JPG"}.items():
        encoded = tokenizer.encode(Image.open(photos / source))
        tokfile.save(
            f"tokens/{name}.tok",
            tokfile.Tokens(
                encoded.indices[0],
                encoded.scales,
                256,
                tokenizer.fingerprint(),
                (64, 64),
            ),
        )
        drawn[name] = tokenizer.decode(encoded)[0]
    return drawn


def same(path, picture):
    with Image.open(path) as drawn:
        return np.array_equal(np.array(drawn), np.array(picture))


def test_the_pictures_are_the_models(run, tokens, model):
    code, out, err = run("decode", "tokens", "-o", "drawn", "-m", model, "-b", "1")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "tokens/deep/two.tok -> drawn/deep/two.png  64×64",
        "tokens/one.tok -> drawn/one.png  64×64",
    ]
    assert all(same(f"drawn/{name}.png", drawn) for name, drawn in tokens.items())


def test_json_tells_the_same(run, tokens, model):
    code, out, err = run("decode", "tokens", "-o", "drawn", "-m", model, "--json")
    result = json.loads(out)
    assert (code, err) == (0, "") and len(result["done"]) == 2
    assert result["done"][1] == {
        "input": "tokens/one.tok",
        "output": "drawn/one.png",
        "width": 64,
        "height": 64,
    }


def test_another_models_tokens_are_refused_with_both_hashes(
    run, tokens, tokenizer, other_model
):
    words = ("decode", "tokens", "-o", "drawn", "-m", other_model, "--json")
    code, out, err = run(*words)
    result = json.loads(out)
    assert code == 1 and result["done"] == [] and len(result["failed"]) == 2
    for entry in result["failed"]:
        assert tokenizer.fingerprint() in entry["reason"]
        assert result["fingerprint"] in entry["reason"]
    assert result["fingerprint"] != tokenizer.fingerprint()
    assert "2 of 2 failed" in err and not Path("drawn").exists()


def test_damaged_and_foreign_files_are_listed_and_the_others_done(run, tokens, model):
    whole = Path("tokens/one.tok").read_bytes()
    Path("tokens/cut.tok").write_bytes(whole[:200])
    Path("tokens/text.tok").write_text("no tokens")
    shutil.copy(Path(model) / "model.safetensors", "tokens/weights.tok")
    code, out, err = run("decode", "tokens", "-o", "drawn", "-m", model)
    assert code == 1 and len(out.splitlines()) == 2
    failed = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 3 and "another kind" in failed[2]
    assert failed[0].startswith("failed: tokens/cut.tok: must be a whole .tok file")


def test_sizes_and_schedules_may_be_mixed(run, photos, tokenizer, model):
    wide = tokenizer.encode(Image.open(photos / "one.png"), size=(64, 96))
    single = tokenizer.encode(Image.open(photos / "one.png"), scales=[8])
    first = tokfile.Tokens(
        wide.indices[0], wide.scales, 256, tokenizer.fingerprint(), (64, 96)
    )
    tokfile.save("tokens/a.tok", first)
    tokfile.save(
        "tokens/b.tok",
        replace(first, indices=single.indices[0], scales=((8, 8),), size=(64, 64)),
    )
    tokfile.save("tokens/c.tok", first)
    prefix = replace(first, indices=first.indices[:2], scales=wide.scales[:1])
    tokfile.save("tokens/d.tok", prefix)
    code, out, _ = run("decode", "tokens", "-o", "drawn", "-m", model)
    assert code == 0 and "drawn/a.png  96×64" in out
    assert same("drawn/a.png", tokenizer.decode(wide)[0])
    assert same("drawn/b.png", tokenizer.decode(single)[0])
    assert same("drawn/c.png", tokenizer.decode(wide)[0])
    rough = tokenizer.quantized(wide.indices[:, :2], scales=wide.scales, grid=(8, 12))
    drawn = tokenizer.decode_pixels(rough).detach().clamp(-1, 1)
    assert same("drawn/d.png", to_pil(drawn)[0])


def test_a_size_the_model_cannot_draw_is_a_failure(run, tokens, model):
    odd = replace(tokfile.load("tokens/one.tok"), size=(63, 64))
    tokfile.save("tokens/odd.tok", odd)
    code, _, err = run("decode", "tokens", "-o", "drawn", "-m", model)
    assert code == 1 and "63×64" in err and "1 of 3 failed" in err


def test_a_codebook_of_another_size_is_a_failure(run, tokens, model):
    forged = replace(tokfile.load("tokens/one.tok"), codebook_size=999)
    tokfile.save("tokens/odd.tok", forged)
    code, _, err = run("decode", "tokens", "-o", "drawn", "-m", model)
    assert code == 1 and "got 999" in err and "1 of 3 failed" in err


def test_pictures_of_before_are_not_replaced(run, tokens, model):
    Path("tokens/one.png").write_text("the original picture")
    words = ("decode", "tokens", "-o", "tokens", "-m", model)
    code, _, err = run(*words)
    assert code == 2 and "tokens/one.png" in err
    assert Path("tokens/one.png").read_text() == "the original picture"


def test_a_write_that_fails_leaves_nothing_half_written(
    run, tokens, model, monkeypatch
):
    def full(picture, path, format):
        path.write_bytes(b"\x89PNG half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    code, _, err = run("decode", "tokens/one.tok", "-o", "drawn", "-m", model)
    assert code == 1 and "No space left on device" in err
    assert list(Path("drawn").iterdir()) == []
