"""Judging a tokenizer: its numbers are those of the metrics on what it redraws."""

import json
import math
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from small_tokenizer import small_tokenizer

from tokenflow.evaluation import metrics
from tokenflow.evaluation.baselines import mean_colour, thumbnail
from tokenflow.evaluation.frechet import Moments, frechet_distance
from tokenflow.evaluation.grid import save_grid
from tokenflow.evaluation.published import darkened
from tokenflow.evaluation.reconstruction import Judges, evaluate_reconstruction, redraw
from tokenflow.evaluation.table import as_text
from tokenflow.evaluation.teacher_features import TeacherFeatures
from tokenflow.tokenizer.processing import to_uint8

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return small_tokenizer(scales=[1, 2, 4], codebook_size=64)


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


def test_batches_are_gone_through_one_by_one(model, images):
    """Of the batches before, at most the last is in memory when one is made."""
    made = []

    def batches():
        for part in images.split(2):
            assert sum(reference() is not None for reference in made) <= 1
            part = part.clone()
            made.append(weakref.ref(part))
            yield part
            del part

    streamed = evaluate_reconstruction(model, batches())
    whole = evaluate_reconstruction(model, images, batch=2)
    for result in (streamed, whole):
        del result["pictures_per_second"]
    assert len(made) == 5 and streamed == whole


def test_the_entropy_is_that_of_each_scale(model, images):
    result = evaluate_reconstruction(model, images)
    bits = [row["tokens"] * math.log2(row["perplexity"]) for row in result["scales"]]
    assert result["entropy_bits_per_pixel"] == pytest.approx(sum(bits) / 64**2)
    assert result["entropy_bits_per_pixel"] <= result["bits_per_pixel"]


class Patches(torch.nn.Module):
    """Judges as simple as can be: the colours of four patches, told as [B, 4, 3]."""

    width, name = 3, "patches"

    def forward(self, images):
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2)
        return pooled.flatten(2).transpose(1, 2)


class Colour:
    width = 3

    def __call__(self, images):
        return images.double().mean(dim=(2, 3))


def distance(*sets):
    moments = [Moments(3) for _ in sets]
    for taken, rows in zip(moments, sets, strict=True):
        taken.update(rows)
    return frechet_distance(*moments)


def test_judges_see_what_is_redrawn_and_its_originals(model, images):
    judges = Judges(
        lpips=lambda one, other: (one - other).abs().mean(dim=(1, 2, 3)),
        inception=Colour(),
        teacher=TeacherFeatures(Patches(), "patches"),
    )
    result = evaluate_reconstruction(model, images, judges=judges, published=True)
    redrawn, look = redraw(model, images).images, Colour()
    apart = (redrawn.double() - images.double()).abs().mean() / 127.5
    assert result["model"]["lpips"] == pytest.approx(apart.item(), rel=1e-5)
    assert result["rfid"] == pytest.approx(distance(look(redrawn), look(images)))
    assert result["rfid_published_script"] == pytest.approx(
        distance(look(redrawn), look(darkened(images)))
    )
    assert result["rfid"] != pytest.approx(result["rfid_published_script"], rel=1e-4)
    signed = [look(x) / 127.5 - 1 for x in (redrawn, images)]
    assert result["frechet_teacher"]["teacher"] == "patches"
    assert result["frechet_teacher"]["distance"] == pytest.approx(
        distance(*signed), rel=1e-4
    )
    text = as_text(result)
    for words in ("LPIPS: ", "rFID: ", "published script", "fréchet_teacher (patches)"):
        assert words in text


def test_without_judges_their_numbers_are_not_there(model, images):
    result = evaluate_reconstruction(model, images)
    assert not {"rfid", "rfid_published_script", "frechet_teacher"} & result.keys()
    assert result["model"].keys() == {"psnr", "ssim", "ssim_published_script"}
    assert "FID" not in as_text(result) and "fréchet" not in as_text(result)


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
    with pytest.raises(ValueError, match="at least 1, got none"):
        evaluate_reconstruction(model, iter([]))
    with pytest.raises(TypeError, match="uint8"):
        evaluate_reconstruction(model, images.float())
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        judges = Judges(inception=Colour())
        evaluate_reconstruction(model, images[:1], judges=judges)


def test_a_grid_shows_originals_over_redrawn(model, images, tmp_path):
    save_grid(model, images, tmp_path / "grid.png", columns=4)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape == (2 * 64 * 4, 2 * 64 * 4, 3)  # two rows of each, doubled
    assert np.array_equal(sheet[:128:2, :128:2], images[0].permute(1, 2, 0).numpy())
    with pytest.raises(ValueError, match="at least 4"):
        save_grid(model, images[:3], tmp_path / "no.png", columns=4)
