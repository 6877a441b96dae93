"""What may be drawn, and what is, equals the published sampling."""

import math

import numpy as np
import pytest
import torch

from tokenflow.generation import sampling


@pytest.mark.parametrize("name", ["sampling_0", "sampling_1"])
def test_what_is_kept_and_drawn_is_recorded(golden, name):
    case = golden(name)
    logits = case["in/logits"]
    for number, (k, p) in enumerate(case.meta["params"]):
        kept = sampling.keep(logits, k, p).isfinite()
        bits = np.unpackbits(case.arrays[f"out/keep_{number}"])[: kept.numel()]
        assert torch.equal(kept, torch.from_numpy(bits).view(kept.shape).bool())
        draw = torch.Generator().manual_seed(case.meta["seed"] + number)
        found = sampling.draw(logits, k, p, draw)
        assert torch.equal(found, case[f"out/idx_{number}"])


def kept(values, k, p):
    logits = torch.tensor([values]).log()
    return sampling.keep(logits, k, p).isfinite()[0].tolist()


def test_the_k_largest_stay_and_their_equals():
    assert kept([0.4, 0.1, 0.3, 0.2], 2, 0) == [True, False, True, False]
    assert kept([0.3, 0.2, 0.3, 0.2], 3, 0) == [True] * 4
    assert kept([0.4, 0.6], 99, 0) == [True, True]
    assert kept([0.4, 0.6], 0, 0) == [True, True]


def test_the_least_likely_share_goes_and_the_largest_stays():
    assert kept([0.5, 0.125, 0.25, 0.125], 0, 0.7) == [True, False, True, False]
    assert kept([0.5, 0.125, 0.25, 0.125], 0, 1e-9) == [True, False, False, False]
    assert kept([0.5, 0.125, 0.25, 0.125], 2, 0.9) == [True, False, True, False]


def test_guidance_leads_away_and_grows_over_the_scales():
    one, other = torch.tensor([[[2.0, 1.0]]]), torch.tensor([[[1.0, 3.0]]])
    assert sampling.guide(one, other, 2.0).tolist() == [[[4.0, -3.0]]]
    assert torch.equal(sampling.guide(one, None, 0.0), one)
    half = sampling.guide(one.bfloat16(), other.bfloat16(), 2.0)
    assert half.dtype == torch.float32
    assert [sampling.guidance_at(i, 4, 7.5) for i in range(4)] == [0, 2.5, 5, 7.5]
    assert sampling.guidance_at(0, 1, 7.5) == 7.5


def test_ids_in_front_are_never_drawn_but_take_part_in_the_stream():
    logits = torch.randn(2, 50, 9, generator=torch.Generator().manual_seed(0))
    whole = torch.cat([torch.full((2, 50, 7), -math.inf), logits], dim=-1)
    wanted = sampling.draw(whole, generator=torch.Generator().manual_seed(3)) - 7
    found = sampling.draw(logits, generator=torch.Generator().manual_seed(3), before=7)
    other = sampling.draw(logits, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found, wanted) and not torch.equal(found, other)
    assert found.min() >= 0 and found.max() < 9


def test_generators_share_the_rows():
    logits = torch.randn(4, 5, 9, generator=torch.Generator().manual_seed(0))
    found = sampling.draw(
        logits, 0, 0.9, [torch.Generator().manual_seed(s) for s in (1, 2)], before=3
    )
    for seed, part in ((1, slice(0, 2)), (2, slice(2, 4))):
        draw = torch.Generator().manual_seed(seed)
        alone = sampling.draw(logits[part], 0, 0.9, draw, before=3)
        assert torch.equal(found[part], alone)


def test_draws_follow_the_probabilities():
    odds = torch.tensor([0.5, 0.3, 0.2])
    logits = odds.log().expand(1, 20000, 3)
    found = sampling.draw(logits, generator=torch.Generator().manual_seed(0))
    share = found[0].bincount()
    assert (share / 20000 - odds).abs().max() < 0.015


@pytest.mark.parametrize(
    ("guidance", "refinement", "words"),
    [
        (-1.0, [(1, 0)], "guidance_scale must be ≥ 0, got -1.0"),
        (math.nan, [(1, 0)], "guidance_scale"),
        (math.inf, [(1, 0)], "guidance_scale"),
        (1.0, [], "at least one"),
        (1.0, [(1, 1.5)], r"p in \[0, 1\]"),
        (1.0, [(-1, 0.5)], "k ≥ 0"),
        (1.0, [(1, 0.5, 3)], "pairs"),
        (1.0, [(1, 0.5), (1,)], "pairs"),
        (1.0, [(1200, 1), (0.8, 0.0)], "whole k"),  # all k, then all p
        (1.0, [(600, 0.6), 3], "got 3"),
    ],
)
def test_settings_out_of_range_are_told(guidance, refinement, words):
    with pytest.raises(ValueError, match=words):
        sampling.check(guidance, refinement)


def test_logits_that_are_no_numbers_are_told():
    with pytest.raises(ValueError, match="draw: logits must be finite"):
        sampling.draw(torch.full((1, 1, 3), math.nan))
