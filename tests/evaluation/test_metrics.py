"""Picture metrics: scikit-image is the judge; codebook numbers worked by hand."""

import math

import numpy as np
import pytest
import skimage.metrics
import torch

from tokenflow.evaluation import metrics


def noisy_pair(height, width, strength, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (2, 3, height, width))
    other = np.clip(base + rng.normal(0, strength, base.shape), 0, 255)
    return [torch.from_numpy(v.astype(np.uint8)) for v in (base, other)]


@pytest.mark.parametrize("size", [(7, 7), (64, 64), (33, 50)], ids=str)
@pytest.mark.parametrize("strength", [3, 40])
def test_psnr_and_ssim_are_those_of_scikit_image(size, strength):
    images, others = noisy_pair(*size, strength)
    for i, (one, two) in enumerate(zip(images.numpy(), others.numpy(), strict=True)):
        want = skimage.metrics.peak_signal_noise_ratio(one, two, data_range=255)
        assert metrics.psnr(images, others)[i].item() == pytest.approx(want, abs=1e-9)
        want = skimage.metrics.structural_similarity(
            one, two, data_range=255, channel_axis=0
        )
        assert metrics.ssim(images, others)[i].item() == pytest.approx(want, abs=1e-9)


def test_ssim_takes_another_range():
    images, others = noisy_pair(20, 30, 20)
    want = skimage.metrics.structural_similarity(
        images[0].numpy(), others[0].numpy(), data_range=100, channel_axis=0
    )
    found = metrics.ssim(images, others, data_range=100)[0].item()
    assert found == pytest.approx(want, abs=1e-9)


def test_equal_pictures_are_perfect():
    images, _ = noisy_pair(16, 16, 1)
    assert metrics.psnr(images, images).isinf().all()
    assert torch.allclose(metrics.ssim(images, images), torch.ones(2).double())


def test_psnr_by_hand():
    black = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    grey = torch.full_like(black, 51)  # a fifth of the range
    assert metrics.psnr(black, grey).item() == pytest.approx(20 * math.log10(5))


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_wrong_pictures_are_named(name):
    judge = getattr(metrics, name)
    images, _ = noisy_pair(8, 8, 1)
    with pytest.raises(ValueError, match="one shape"):
        judge(images, images[:1])
    with pytest.raises(TypeError, match="uint8"):
        judge(images.float(), images.float())


def test_ssim_needs_its_window():
    images, _ = noisy_pair(6, 9, 1)
    with pytest.raises(ValueError, match="at least 7"):
        metrics.ssim(images, images)


def test_usage_and_perplexity_by_hand():
    counts = torch.tensor([4, 4, 0, 0])
    assert metrics.usage(counts) == 0.5
    assert metrics.perplexity(counts) == pytest.approx(2.0)
    assert metrics.perplexity(torch.tensor([3, 3, 3])) == pytest.approx(3.0)
    assert metrics.perplexity(torch.tensor([0, 7])) == pytest.approx(1.0)
    assert metrics.perplexity(torch.zeros(3)) == 0.0


def test_entropy_by_hand():
    assert metrics.entropy_bits(torch.tensor([2, 1, 1, 0])) == pytest.approx(1.5)
    assert metrics.entropy_bits(torch.full((8,), 5)) == pytest.approx(3.0)
    assert metrics.entropy_bits(torch.tensor([0, 9])) == 0.0
    assert metrics.entropy_bits(torch.zeros(3)) == 0.0
