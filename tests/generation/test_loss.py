"""Cross-entropy a few rows at a time is the plain one, and that is torch's."""

import math

import pytest
import torch
import torch.nn.functional as F

from tokenflow.generation import loss
from tokenflow.generation.loss import cross_entropy, linear_cross_entropy

FUNCTIONS = pytest.mark.parametrize(
    "function",
    [linear_cross_entropy, lambda h, w, *rest: cross_entropy(h @ w.T, *rest)],
)


def case(rows, many=3, entries=50, device="cpu"):
    seeded = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 8, generator=seeded).to(device).requires_grad_()
    weight = torch.randn(entries, 8, generator=seeded).to(device).requires_grad_()
    ids = torch.randint(entries, (rows, many), generator=seeded).to(device)
    shares = torch.rand(rows, many, generator=seeded).softmax(-1).to(device)
    return hidden, weight, ids, shares


def true(hidden, weight, ids, shares):
    """Torch's, of chances for every entry, in float64."""
    chances = ids.new_zeros(len(ids), len(weight), dtype=torch.float32)
    chances.scatter_add_(1, ids, shares)
    return F.cross_entropy(hidden.double() @ weight.double().T, chances.double())


def results(function, hidden, weight, *others):
    """The loss, and its gradients times 3."""
    found = function(hidden, weight, *others)
    return found, *torch.autograd.grad(3 * found, (hidden, weight))


def errors(function, *given):
    """How far each of the three is from what is true, as a share of it."""
    pairs = zip(results(function, *given), results(true, *given), strict=True)
    return [((a - b).norm() / b.norm()).item() for a, b in pairs]


@FUNCTIONS
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 9])  # around the 4 rows at a time
def test_loss_and_gradients_are_torchs(function, rows, device, monkeypatch):
    monkeypatch.setitem(loss.ROWS, device.type, 4)
    assert max(errors(function, *case(rows, device=device))) < 1e-6


@FUNCTIONS
def test_a_case_worked_by_hand(function):
    """Logits 0 and log 3 make chances of 1/4 and 3/4; the target is half of each."""
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]], requires_grad=True)
    halves = torch.tensor([[0.5, 0.5]])
    found, slope, _ = results(function, hidden, weight, torch.tensor([[0, 1]]), halves)
    assert found.item() == pytest.approx(-(math.log(0.25) + math.log(0.75)) / 2)
    assert slope.item() == pytest.approx(3 * (0.75 - 0.5) * math.log(3))


@FUNCTIONS
def test_an_id_that_is_named_twice_has_both_shares(function):
    hidden, weight, ids, _ = case(2, many=1)
    shares = torch.tensor([[0.25, 0.75]]).expand(2, 2)
    twice = results(function, hidden, weight, ids.expand(2, 2), shares)
    once = results(function, hidden, weight, ids, torch.ones(2, 1))
    for one, other in zip(twice, once, strict=True):
        torch.testing.assert_close(one, other)


@FUNCTIONS
def test_rows_without_shares_count_nothing(function):
    hidden, weight, ids, shares = case(6)
    kept = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])[:, None]
    found = results(function, hidden, weight, ids, 2 * kept * shares)
    some = kept[:, 0].bool()
    right = results(function, hidden, weight, ids, shares * kept)[0] * 2
    torch.testing.assert_close(found[0], right)
    torch.testing.assert_close(
        found[0], true(hidden[some], weight, ids[some], shares[some]).float()
    )
    assert not found[1][~some].any()


@FUNCTIONS
def test_leading_shapes_are_any_and_rows_may_be_strided(function):
    hidden, weight, ids, shares = case(12)
    flat = function(hidden, weight, ids, shares)
    parts = (part.view(3, 4, -1).transpose(0, 1) for part in (hidden, ids, shares))
    hidden, ids, shares = parts
    torch.testing.assert_close(function(hidden, weight, ids, shares), flat)


@FUNCTIONS
def test_large_logits_do_not_overflow(function):
    hidden, weight = torch.tensor([[100.0]]), torch.tensor([[100.0], [-100.0]])
    found = function(hidden, weight, torch.tensor([[1]]), torch.ones(1, 1))
    assert found.item() == pytest.approx(20000)


@FUNCTIONS
def test_no_rows_have_no_mean(function):
    assert function(*case(0)).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_are_autocasts(dtype, device):
    """Of so many rows and entries that slopes of the mean are no float16."""
    given = case(2048, entries=4096, device=device)
    with torch.autocast(device.type, dtype):
        found = results(linear_cross_entropy, *given)
        assert max(errors(linear_cross_entropy, *given)) < 0.01
    assert {one.dtype for one in found} == {torch.float32}
    assert not torch.equal(found[0], linear_cross_entropy(*given))


def test_halves_have_half_gradients():
    hidden, weight, ids, shares = case(7)
    narrow = [part.detach().bfloat16().requires_grad_() for part in (hidden, weight)]
    found = results(linear_cross_entropy, *narrow, ids, shares)
    assert [one.dtype for one in found] == [torch.float32, *[torch.bfloat16] * 2]
    assert max(errors(linear_cross_entropy, *narrow, ids, shares)) < 0.02


def test_gradients_are_made_where_they_are_wanted():
    hidden, weight, ids, shares = case(5)
    right = results(true, hidden, weight, ids, shares)
    given = ids, shares
    alone = linear_cross_entropy(hidden, weight.detach(), *given)
    (slope,) = torch.autograd.grad(3 * alone, hidden)
    torch.testing.assert_close(slope, right[1])
    alone = linear_cross_entropy(hidden.detach(), weight, *given)
    (slope,) = torch.autograd.grad(3 * alone, weight)
    torch.testing.assert_close(slope, right[2])
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, *given).requires_grad


@FUNCTIONS
@pytest.mark.parametrize("wrong", ["ids", "shares"])
def test_rows_that_do_not_fit_are_told(function, wrong):
    hidden, weight, ids, shares = case(5)
    ids, shares = (ids[:4], shares[:4]) if wrong == "ids" else (ids, shares[:, :1])
    with pytest.raises(
        ValueError, match=r"must both be \[\.\.\., m\] with the rows \[5\]"
    ):
        function(hidden, weight, ids, shares)
