"""Numbers gathered batch by batch: by hand, and wherever the batches end."""

import math

import pytest
import torch

from tokenflow.evaluation import metrics
from tokenflow.evaluation.frechet import frechet_distance
from tokenflow.evaluation.published import darkened
from tokenflow.evaluation.running import Apart, CodeUse, Means

SCALES = ((1, 1), (2, 2))


def pictures(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, 8, 8)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


class Colours:
    """An extractor of two features: the mean red and the mean green."""

    width = 2

    def __call__(self, images):
        return images.double().mean(dim=(2, 3))[:, :2]


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_batches_change_no_bit(batch):
    images, originals = pictures(9), pictures(9, seed=1)
    indices = pictures(9, seed=2).flatten(1)[:, :5].long() % 16

    def gather(size):
        means = Means({"psnr": metrics.psnr, "ssim": metrics.ssim})
        apart, codes = Apart(Colours(), darkened), CodeUse(SCALES, 16)
        for part in range(0, 9, size):
            where = slice(part, part + size)
            means.update(images[where], originals[where])
            apart.update(images[where], originals[where])
            codes.update(indices[where])
        return (
            means.result(),
            apart.result(),
            apart.other_result(),
            codes.overall(),
            codes.per_scale(),
        )

    assert gather(batch) == gather(9)


def test_a_mean_is_over_all_pictures():
    means = Means({"first": lambda images, _: images[:, 0, 0, 0].double()})
    images = torch.zeros(3, 1, 1, 1)
    images[:, 0, 0, 0] = torch.tensor([1.0, 2.0, 6.0])
    means.update(images[:1], images[:1])
    means.update(images[1:], images[1:])
    assert means.result() == {"first": 3.0}


def test_the_second_distance_is_from_changed_originals():
    images, originals = pictures(5), pictures(6, seed=1)[:5]
    apart = Apart(Colours(), lambda x: x // 2)
    apart.update(images, originals)
    again = Apart(Colours())
    again.update(images, originals // 2)
    assert apart.other_result() == again.result() != apart.result()
    assert again.result() == frechet_distance(again._redrawn, again._originals)


def test_use_of_the_codebook_by_hand():
    codes = CodeUse(SCALES, 8)
    codes.update(torch.tensor([[0, 0, 1, 2, 3], [0, 3, 2, 1, 0]]))
    first, second = codes.per_scale()
    assert first["scale"] == [1, 1] and second["tokens"] == 4
    assert (first["usage"], first["perplexity"], first["entropy_bits"]) == (1 / 8, 1, 0)
    assert second["usage"] == 0.5
    assert second["entropy_bits"] == pytest.approx(2.0)
    assert second["perplexity"] == pytest.approx(4.0)
    assert codes.entropy_bits_per_picture() == pytest.approx(1 * 0 + 4 * 2.0)
    total = codes.overall()  # 4, 2, 2, 2 of ten
    entropy = -(0.4 * math.log2(0.4) + 3 * 0.2 * math.log2(0.2))
    assert total["usage"] == 0.5
    assert total["perplexity"] == pytest.approx(2**entropy)
