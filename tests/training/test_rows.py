"""Rows of several processes: one order, and sums that do not depend on it."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from training_rooms import Room

from tokenflow.training.kmeans import Metric, kmeans
from tokenflow.training.rows import Rows
from tokenflow.training.world import World


def everywhere(shares, work):
    """Do `work(rows, rank)` in as many threads as there are shares of vectors."""
    worlds = Room(len(shares)).worlds
    with ThreadPoolExecutor(len(shares)) as pool:
        jobs = [
            pool.submit(lambda at=at: work(Rows(shares[at], worlds[at]), at))
            for at in range(len(shares))
        ]
        return [job.result() for job in jobs]


def shares(vectors, sizes=(5, 0, 8, 7)):
    return vectors.split(list(sizes))


def some(count=20, width=6, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_a_number_names_the_same_row_on_every_process():
    vectors, numbers = some(), torch.tensor([19, 0, 5, 4, 5, 12])
    for got in everywhere(shares(vectors), lambda rows, _: rows.pick(numbers)):
        assert torch.equal(got, vectors[numbers])


def test_sums_are_the_same_bits_in_any_order_and_split():
    vectors = some(2000) * torch.logspace(-4, 4, 2000)[:, None]
    groups = torch.arange(2000) % 3
    alone = Rows(vectors, World()).sums(groups, 4)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Rows(vectors[order], World()).sums(groups[order], 4), alone)
    sizes = (5, 0, 1200, 795)
    parts = groups.split(list(sizes))
    found = everywhere(
        shares(vectors, sizes), lambda rows, rank: rows.sums(parts[rank], 4)
    )
    assert all(torch.equal(one, alone) for one in found)
    for group in range(3):
        exact = vectors[groups == group].double().sum(dim=0)
        unit = vectors.abs().max().item() * 2.0**-29
        assert (alone[group] - exact).abs().max() <= 667 * unit
    assert alone[3].abs().max() == 0


def test_a_sample_repeats_no_row_while_there_are_others():
    rows = Rows(some(10), World())
    assert len(rows.sample(7, random.Random(0)).unique()) == 7
    counts = rows.sample(25, random.Random(0)).bincount(minlength=10)
    assert counts.min() == 2 and counts.max() == 3
    with pytest.raises(ValueError, match="there must be rows to draw from, got none"):
        Rows(some(0), World()).sample(1, random.Random(0))


def test_some_rows_are_the_same_for_any_split():
    vectors = some()
    alone = Rows(vectors, World()).some(12, random.Random(3)).vectors
    assert alone.shape == (12, 6)
    found = everywhere(
        shares(vectors), lambda rows, _: rows.some(12, random.Random(3)).vectors
    )
    assert torch.equal(torch.cat(found), alone)
    assert Rows(vectors, World()).some(20, random.Random(3)).vectors is vectors


def test_draws_are_in_proportion_to_weights():
    weights = torch.tensor([0, 3, 0, 1, 4])
    rows = Rows(some(5), World())
    for seed in range(20):
        counts = rows.draw(weights, 8, random.Random(seed)).bincount(minlength=5)
        assert counts.tolist() == [0, 3, 0, 1, 4]
    nothing = rows.draw(weights * 0, 5, random.Random(0))
    assert sorted(nothing.tolist()) == [0, 1, 2, 3, 4]
    found = everywhere(
        shares(some(5), (2, 0, 3)),
        lambda rows, rank: rows.draw(
            weights.split([2, 0, 3])[rank], 3, random.Random(7)
        ),
    )
    alone = rows.draw(weights, 3, random.Random(7))
    assert all(torch.equal(one, alone) for one in found)


@pytest.mark.parametrize("normalize", [True, False])
def test_kmeans_is_the_same_bits_for_any_split(normalize):
    metric = Metric((4, 2), 2.0, normalize)
    vectors = metric.read(some(200))
    alone = kmeans(Rows(vectors, World()), metric, 40, 4, random.Random(0))
    found = everywhere(
        shares(vectors, (50, 0, 120, 30)),
        lambda rows, _: kmeans(rows, metric, 40, 4, random.Random(0)),
    )
    assert all(torch.equal(one, alone) for one in found)


def test_a_round_moves_centres_to_the_means_of_their_halves():
    metric = Metric((4, 2), 0.5, normalize=True)
    rows = Rows(metric.read(some(60)), World())
    before = kmeans(rows, metric, 5, 3, random.Random(0))
    after = kmeans(rows, metric, 5, 4, random.Random(0))
    scores = rows.vectors[:, :4] @ before[:, :4].T
    scores += 0.5 * rows.vectors[:, 4:] @ before[:, 4:].T
    own = scores.argmax(dim=1)
    for centre in range(5):
        mean = rows.vectors[own == centre].mean(dim=0)
        expected = torch.cat(
            [F.normalize(mean[:4], dim=0), F.normalize(mean[4:], dim=0)]
        )
        assert torch.allclose(after[centre], expected, atol=1e-5)


def test_an_empty_centre_is_drawn_anew(monkeypatch):
    metric = Metric((1, 1), normalize=False)
    rows = Rows(torch.tensor([[0.0, 0]] * 9 + [[10.0, 10]]), World())
    begin = torch.tensor([[0.0, 0], [50, 50]])
    monkeypatch.setattr("tokenflow.training.kmeans._first", lambda *_: begin)
    centres = kmeans(rows, metric, 2, 2, random.Random(0))
    assert sorted(centres.tolist()) == [[0, 0], [10, 10]]


def test_distances_weight_the_pixel_half():
    metric = Metric((1, 1), 4.0, normalize=False)
    rows = Rows(torch.tensor([[2.0, 0], [0, 2.0], [0, 0]]), World())
    far = metric.distances(rows, torch.zeros(1, 2), torch.zeros(3, dtype=torch.int64))
    assert far[1] == 4 * far[0] > 0 == far[2]


def test_halves_that_cancel_leave_a_centre_where_it_was():
    metric = Metric((2, 1))
    before = torch.tensor([[1.0, 0.0, 1.0]])
    placed = metric.placed(torch.tensor([[0.0, 0.0, -3.0]]), before)
    assert placed.tolist() == [[1.0, 0.0, -1.0]]
