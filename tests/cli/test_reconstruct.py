"""`tokenflow reconstruct`: pictures redrawn, and how close each comes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from tokenflow.tokenizer.processing import center_crop


def test_psnr_and_pictures_are_right(run, photos, model, tokenizer):
    words = ("reconstruct", "photos", "-o", "drawn", "-m", model, "--json")
    code, out, err = run(*words)
    result = json.loads(out)
    assert code == 0 and result["failed"] == []
    values = []
    for entry in result["done"]:
        seen = center_crop(Image.open(entry["input"]), 64)
        drawn = np.array(Image.open(entry["output"]))
        expected = np.array(tokenizer.decode(tokenizer.encode(seen))[0], dtype=int)
        # convolutions of a batch round otherwise than those of one picture
        assert np.abs(drawn - expected).max() <= 1
        values.append(peak_signal_noise_ratio(np.array(seen), drawn))
        assert entry["psnr"] == pytest.approx(values[-1])
    assert result["mean_psnr"] == pytest.approx(np.mean(values))
    assert err == f"3 pictures, mean PSNR {np.mean(values):.2f} dB\n"


def test_a_line_for_each_picture(run, photos, model):
    code, out, _ = run("reconstruct", "photos/one.png", "-o", "drawn", "-m", model)
    assert code == 0 and out.startswith("photos/one.png -> drawn/one.png  ")
    assert out.endswith(" dB\n")


def test_a_folder_of_photographs(run, tmp_path, monkeypatch, model):
    """What two libraries ship for such purposes, one picture of which is no picture."""
    monkeypatch.chdir(tmp_path)
    data = Path(__import__("skimage").__file__).parent / "data"
    images = Path(__import__("sklearn").__file__).parent / "datasets" / "images"
    Path("photos").mkdir()
    names = ("astronaut.png", "camera.png", "coffee.png", "rocket.jpg")
    for path in [*(data / name for name in names), *images.glob("*.jpg")]:
        Path("photos", path.name).write_bytes(path.read_bytes())
    Path("photos/broken.jpg").write_bytes(Path("photos/rocket.jpg").read_bytes()[:999])
    code, out, err = run("reconstruct", "photos", "-o", "drawn", "-m", model)
    assert code == 1 and "1 of 7 failed" in err
    assert len(out.splitlines()) == 6
    drawn = sorted(Path("drawn").iterdir())
    assert len(drawn) == 6 and {path.suffix for path in drawn} == {".png"}
    assert {Image.open(path).size for path in drawn} == {(64, 64)}


def test_inputs_are_never_replaced(run, photos, model):
    before = (photos / "one.png").read_bytes()
    words = ("-m", model, "--overwrite")
    for source in ("photos", "photos/one.png"):
        code, _, err = run("reconstruct", source, "-o", "photos", *words)
        assert code == 2 and "--out" in err
    assert (photos / "one.png").read_bytes() == before


def test_all_broken_is_no_mean(run, photos, model):
    (photos / "one.png").write_text("no picture")
    words = ("reconstruct", "photos/one.png", "-o", "drawn", "-m", model, "--json")
    code, out, _ = run(*words)
    assert code == 1 and json.loads(out)["mean_psnr"] is None
