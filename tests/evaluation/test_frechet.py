"""The Fréchet distance: recorded values, Gaussians worked by hand, streams."""

import math

import numpy as np
import pytest
import torch

from tokenflow.evaluation.frechet import BLOCK, Moments, frechet_distance


def moments(rows, *cuts):
    """The moments of rows that arrive in parts."""
    taken = Moments(rows.shape[1])
    for part in torch.tensor_split(rows, cuts):
        taken.update(part)
    return taken


def rows(count, width=5, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["fid_core_0", "fid_core_1"])
def test_the_published_distance_is_reproduced(golden, name):
    case = golden(name)
    one, other = moments(case["in/feat_a"]), moments(case["in/feat_b"])
    assert frechet_distance(one, other) == pytest.approx(
        case["out/fid"].item(), rel=1e-9
    )


def test_few_rows_and_many_take_the_same_distance():
    """Few rows are kept as they are, many as their scatter; the truth is one."""
    few, many = rows(BLOCK // 2, seed=3), rows(BLOCK // 2, seed=3).repeat(3, 1)
    other = moments(2 * rows(90, seed=4) + 1)
    (_, a), (_, b) = moments(few).mean_and_covariance(), other.mean_and_covariance()
    n = len(few)
    scale = (3 * (n - 1)) / (3 * n - 1)  # of the covariance of rows told three times
    mean = moments(few).mean_and_covariance()[0] - other.mean_and_covariance()[0]
    for taken, c in ((moments(few), a), (moments(many), scale * a)):
        product = torch.linalg.eigvals(c @ b).real.sqrt().sum()
        want = mean.square().sum() + c.trace() + b.trace() - 2 * product
        assert frechet_distance(taken, other) == pytest.approx(want.item(), rel=1e-9)


def test_two_gaussians_by_hand():
    """Of one feature: (m - n)² + (σ - τ)²; rows -1, 1 have the variance 2."""
    one = torch.tensor([[-1.0], [1.0]])
    other = 3 * one + 5
    want = 25 + (math.sqrt(2) - 3 * math.sqrt(2)) ** 2
    assert frechet_distance(moments(one), moments(other)) == pytest.approx(want)


def test_features_that_vary_together_count_by_their_roots():
    """tr (A B)^½ of diag(4, 1) and of the same turned by 45 degrees, by hand."""
    straight = torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]]) * math.sqrt(1.5)
    turn = torch.tensor([[1.0, 1], [-1, 1]]) / math.sqrt(2)
    # A B has the trace 12.5 and the determinant 16: its roots sum to √(12.5 + 2 · 4)
    want = 5 + 5 - 2 * math.sqrt(12.5 + 2 * 4)
    found = frechet_distance(moments(straight), moments(straight @ turn))
    assert found == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("count", [2, 3, 40, BLOCK, BLOCK + 1])
def test_equal_sets_are_no_distance_apart_though_singular(count):
    same = rows(count, width=30)
    same[:, 15:] = same[:, :15]  # the covariance has half of its rank, or less
    found = frechet_distance(moments(same), moments(same.flip(0)))
    assert found == pytest.approx(0, abs=1e-9)


def test_sets_of_equal_rows_are_as_far_apart_as_their_means():
    one, other = torch.zeros(3, 4), torch.full((5, 4), 2.0)
    assert frechet_distance(moments(one), moments(other)) == 16.0


@pytest.mark.parametrize(
    "cuts", [(1,), (0, 7, 7), (1023, 1024, 1025), range(0, 2236, 3)]
)
def test_where_the_batches_end_changes_no_bit(cuts):
    all_rows = rows(2 * BLOCK + 188)
    whole, parts = moments(all_rows), moments(all_rows, *cuts)
    assert whole.count == parts.count == len(all_rows)
    for one, other in zip(
        whole.mean_and_covariance(), parts.mean_and_covariance(), strict=True
    ):
        assert torch.equal(one, other)


def test_mean_and_covariance_are_numpys_far_from_zero_too():
    far = rows(1000).double() * 1e-3 + 1e4
    taken = moments(far)
    mean, covariance = taken.mean_and_covariance()
    np.testing.assert_allclose(mean, far.mean(0), rtol=1e-14)
    np.testing.assert_allclose(
        covariance, np.cov(far.numpy(), rowvar=False), rtol=1e-6, atol=1e-12
    )
    taken.update(far[:1])  # asking changes nothing: more may come
    assert taken.count == 1001


def test_a_row_alone_and_wrong_rows_are_refused():
    taken = moments(rows(1))
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        frechet_distance(taken, moments(rows(4)))
    with pytest.raises(ValueError, match=r"\[B, 5\], got \[2, 4\]"):
        taken.update(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="finite, 1 of 3 are not"):
        taken.update(torch.tensor([[0.0] * 5, [math.nan] * 5, [1.0] * 5]))
    with pytest.raises(ValueError, match="one width, got 5 and 4"):
        frechet_distance(moments(rows(9)), moments(rows(9, width=4)))
