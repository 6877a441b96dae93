"""The published script's numbers: recorded from it, and what makes them differ."""

import numpy as np
import pytest
import torch
from PIL import Image

from tokenflow.evaluation import metrics
from tokenflow.evaluation.published import darkened, ssim_published_script
from tokenflow.tokenizer.processing import center_crop, to_uint8

CASES = ["recon_metrics_0", "recon_metrics_1", "recon_metrics_2"]


def as_batch(array):
    return torch.as_tensor(array).permute(2, 0, 1)[None].contiguous()


@pytest.mark.parametrize("name", CASES)
def test_the_published_numbers_are_reproduced(golden, name):
    case = golden(name)
    picture = Image.fromarray(case["in/image_hwc"].numpy())
    crop = center_crop(picture, case.meta["crop"])
    original = as_batch(np.array(crop))
    redrawn = to_uint8(case["in/model_output"])
    assert torch.equal(original, as_batch(case["out/center_crop"]))
    assert torch.equal(redrawn, as_batch(case["out/sample_u8"]))
    assert torch.equal(darkened(original), as_batch(case["out/gt_u8"]))
    for score, key in (
        (metrics.psnr, "out/psnr"),
        (metrics.ssim, "out/ssim_range1"),
        (ssim_published_script, "out/ssim_range2"),
    ):  # the script computes in float32
        found = score(redrawn, original).item()
        assert found == pytest.approx(case[key].item(), abs=2e-7), key


def test_twice_the_range_flatters():
    generator = torch.Generator().manual_seed(0)
    images, others = torch.randint(
        256, (2, 4, 3, 16, 16), generator=generator, dtype=torch.uint8
    )
    assert (ssim_published_script(images, others) > metrics.ssim(images, others)).all()


def test_darkening_takes_one_from_63_levels():
    levels = torch.arange(256, dtype=torch.uint8)
    lost = levels.int() - darkened(levels).int()
    assert lost.unique().tolist() == [0, 1] and lost.sum() == 63
    assert darkened(levels[[0, 255]]).tolist() == [0, 255]
