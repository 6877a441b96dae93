"""Targets that neighbours share: which entries, and how much each has."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_tokenizer import small_tokenizer

from tokenflow import TokenFlowConfig
from tokenflow.tokenizer.quantizer import Quantizer
from tokenflow.training.near import head_rows, quantize_near
from tokenflow_ext import quantize


def quantize_one_by_one(quantizer, rows):
    return quantize(
        rows[:, : quantizer.semantic_width].contiguous(),
        rows[:, quantizer.semantic_width :].contiguous(),
        *quantizer.books(),
        pixel_weight=quantizer.pixel_weight,
        normalize=quantizer.normalize,
    )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_the_nearest_is_the_token(normalize, weight):
    """At every scale, so what is left for the next one is what was quantized there."""
    quantizer = small_tokenizer(normalize=normalize, pixel_weight=weight).quantizer
    features = torch.randn(3, 24, 8, 8, generator=torch.Generator().manual_seed(0))
    found = quantize_near(quantizer, features, 4, 0.1)
    assert torch.equal(found.indices, quantizer.quantize(features)[0])
    assert torch.equal(found.near[..., 0], found.indices)
    assert found.near.shape == found.shares.shape == (3, 130, 4)
    assert (found.shares.diff(dim=-1) <= 0).all()
    torch.testing.assert_close(found.shares.sum(-1), torch.ones(3, 130))


def test_a_case_worked_by_hand():
    """One cell, three entries on the unit circle at 0°, 60° and 180°, a row at 10°."""
    facts = {"scales": [1], "grid": 1, "codebook_size": 3, "pixel_weight": 0.0}
    config = TokenFlowConfig.preset("mini", semantic_dim=2, pixel_dim=2, **facts)
    quantizer = Quantizer(config)
    angles = torch.tensor([0.0, 60.0, 180.0]).deg2rad()
    with torch.no_grad():
        quantizer.semantic_book.copy_(torch.stack([angles.cos(), angles.sin()], 1))
    turn = math.radians(10)
    row = torch.tensor([5 * math.cos(turn), 5 * math.sin(turn), 1.0, 0.0])
    found = quantize_near(quantizer, row.view(1, 4, 1, 1), 2, 0.5)
    assert found.near.tolist() == [[[0, 1]]]
    # |x − e|² = 2 − 2 cos, so a share goes with exp(cos / T)
    ratio = math.exp((math.cos(turn) - math.cos(math.radians(50))) / 0.5)
    assert found.shares[0, 0, 0].item() == pytest.approx(ratio / (1 + ratio), rel=1e-5)


def test_targets_make_good_what_noise_changed():
    """Another token is taken; what is left without it is what the next scale learns."""
    quantizer = small_tokenizer().quantizer
    seeded = torch.Generator().manual_seed(0)
    features = torch.randn(2, 24, 8, 8, generator=seeded)
    clean = quantize_near(quantizer, features, 2, 0.1)
    silent = quantize_near(quantizer, features, 2, 0.1, torch.zeros(2, 130, 24))
    assert torch.equal(silent.indices, clean.indices)
    assert torch.equal(clean.indices, quantizer.quantize(features)[0])
    noise = torch.zeros(2, 130, 24)
    noise[1, 0] = 2 * torch.randn(24, generator=seeded)
    found = quantize_near(quantizer, features, 2, 0.1, noise)
    assert torch.equal(found.indices[0], clean.indices[0])
    assert found.indices[1, 0] != clean.indices[1, 0]
    assert torch.equal(found.near[1, 0], clean.near[1, 0])
    taken = quantizer.entries(found.indices[1, 0]).view(1, 24, 1, 1)
    rest = (features[1:] - taken)[0]
    first, second = quantizer.scales[1], slice(1, 1 + math.prod(quantizer.scales[1]))
    rows = F.adaptive_avg_pool2d(rest, first).flatten(1).T
    true = quantize_one_by_one(quantizer, rows)
    assert torch.equal(found.near[1, second, 0], true)


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_rows_of_a_head_are_as_near_as_entries(weight):
    quantizer = small_tokenizer(pixel_weight=weight).quantizer
    entries = quantizer.entries(torch.arange(256))
    entries[:, quantizer.semantic_width :] *= weight**0.5
    rows = torch.randn(256, 48, generator=torch.Generator().manual_seed(0))
    made = head_rows(quantizer, rows, 3.0)
    assert made.norm().item() == pytest.approx(3 * rows.norm().item())
    size = (made[0] - made[1]).norm() / (entries[0] - entries[1]).norm()
    wanted = size * torch.pdist(entries)
    torch.testing.assert_close(torch.pdist(made), wanted, rtol=1e-3, atol=1e-3)


def test_rows_that_cannot_be_turned_are_projected_and_finite():
    quantizer = small_tokenizer().quantizer
    rows = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    made = head_rows(quantizer, rows, 2.0)
    assert made.norm().item() == pytest.approx(2 * rows.norm().item())
    with torch.no_grad():  # all entries are one
        quantizer.semantic_book.copy_(quantizer.semantic_book[:1].clone())
        quantizer.pixel_book.copy_(quantizer.pixel_book[:1].clone())
    assert head_rows(quantizer, rows, 2.0).isfinite().all()
