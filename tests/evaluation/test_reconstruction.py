"""Judging a tokenizer: its numbers are those of the metrics on what it redraws."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from tokenflow import TokenFlowTokenizer
from tokenflow.config import TokenFlowConfig
from tokenflow.evaluation import metrics, pictures
from tokenflow.evaluation.reconstruction import (
    as_text,
    evaluate_reconstruction,
    mean_colour,
    save_grid,
    thumbnail,
)
from tokenflow.tokenizer.processing import to_uint8


@pytest.fixture(autouse=True)
def one_thread():
    """A second thread costs more than it brings to matrices this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    small = {
        "scales": [1, 2, 4],
        "codebook_size": 64,
        "semantic_encoder": {"width": 32, "layers": 1},
        "semantic_decoder": {"width": 32},
        "pixel_encoder": {"multipliers": [1, 1, 1, 1]},
        "pixel_decoder": {"multipliers": [1, 1, 1, 1]},
        "pixel_latent": 32,
    }
    return TokenFlowTokenizer(TokenFlowConfig.preset("mini", **small)).eval()


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 3, 4, 4)).repeat(16, 2).repeat(16, 3)
    return torch.from_numpy(coarse.astype(np.uint8))


def test_numbers_are_those_of_what_is_redrawn(model, images):
    result = evaluate_reconstruction(model, images, batch=4)
    encoded = model.encode(images.float() / 127.5 - 1)
    redrawn = to_uint8(model.decode(encoded, output="pt"))
    counts = torch.bincount(encoded.indices.flatten(), minlength=64)
    assert result["model"]["psnr"] == pytest.approx(
        metrics.psnr(redrawn, images).mean().item(), abs=0.01
    )
    assert result["usage"] == pytest.approx((counts > 0).sum().item() / 64)
    assert result["tokens"] == 21 and result["pictures"] == 9
    assert result["bits_per_pixel"] == pytest.approx(21 * 6 / 64**2)
    assert [row["tokens"] for row in result["scales"]] == [1, 4, 16]
    assert all(speed > 0 for speed in result["pictures_per_second"].values())


def test_the_batch_does_not_matter(model, images):
    one, all_at_once = (
        evaluate_reconstruction(model, images, batch=b) for b in (1, 64)
    )
    for name in ("usage", "perplexity", "scales", "mean_colour", "thumbnail"):
        assert one[name] == all_at_once[name]
    assert one["model"]["psnr"] == pytest.approx(all_at_once["model"]["psnr"], abs=0.01)


def test_a_result_is_json_and_text(model, images):
    result = evaluate_reconstruction(model, images)
    assert json.loads(json.dumps(result)) == result
    text = as_text(result)
    assert "mean colour" in text and "thumbnail 8 x 8" in text
    assert f"{result['model']['psnr']:.2f}" in text


def test_baselines_by_hand(images):
    half = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    half[..., 8:] = 100
    assert (mean_colour(half) == 50).all()
    assert metrics.psnr(mean_colour(half), half).item() == pytest.approx(
        20 * math.log10(255 / 50)
    )
    assert (thumbnail(half, 1) == 50).all()
    assert torch.equal(thumbnail(images, 64), images)


def test_wrong_pictures_are_refused(model, images):
    with pytest.raises(ValueError, match=r"\[N, 3, 64, 64\].*got \[9, 3, 64, 32\]"):
        evaluate_reconstruction(model, images[..., :32])
    with pytest.raises(ValueError, match="N at least 1"):
        evaluate_reconstruction(model, images[:0])
    with pytest.raises(TypeError, match="uint8"):
        evaluate_reconstruction(model, images.float())


def test_a_grid_shows_originals_over_redrawn(model, images, tmp_path):
    save_grid(model, images, tmp_path / "grid.png", columns=4)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape == (2 * 64 * 4, 2 * 64 * 4, 3)  # two rows of each, doubled
    assert np.array_equal(sheet[:128:2, :128:2], images[0].permute(1, 2, 0).numpy())
    with pytest.raises(ValueError, match="at least 4"):
        save_grid(model, images[:3], tmp_path / "no.png", columns=4)


def test_photographs_are_those_installed():
    images, names = pictures.load("photos", size=64)
    assert images.shape == (len(names), 3, 64, 64) and images.dtype == torch.uint8
    assert "scikit-image/astronaut.png" in names
    assert any(name.startswith("scikit-learn/") for name in names)


def test_a_folder_is_read_in_order_of_names(tmp_path):
    for i, name in enumerate(("b.png", "a.jpg", "c.txt")):
        if name.endswith("txt"):
            (tmp_path / name).write_text("no picture")
        else:
            Image.new("RGB", (90, 70), (60 * i, 0, 0)).save(tmp_path / name)
    images, names = pictures.load(str(tmp_path), size=32)
    assert names == ["a.jpg", "b.png"] and images.shape == (2, 3, 32, 32)
    assert pictures.load(str(tmp_path), size=32, count=1)[1] == ["a.jpg"]


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="'glyphs', 'photos' or a folder"):
        pictures.load(str(tmp_path / "none"), size=32)
    with pytest.raises(FileNotFoundError, match="must hold pictures"):
        pictures.load(str(tmp_path), size=32)
    with pytest.raises(ValueError, match="count must be at least 1"):
        pictures.load("glyphs", size=32, count=0)
