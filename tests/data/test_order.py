"""The order of a run: a shuffle each epoch, any place of it known alone."""

import pickle

import numpy as np
import pytest

from tokenflow.data.order import Order, key, shuffle


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 63, 64, 65, 1000, 99991])
def test_an_epoch_shows_everything_once(length):
    order = Order(length, seed=3)
    for epoch in (0, 1, 7):
        assert np.array_equal(np.sort(order.permutation(epoch)), np.arange(length))


@pytest.mark.parametrize("window", [1, 2, 3, 8])
@pytest.mark.parametrize("sizes", [[5], [3, 0, 9, 1], [10] * 7, list(range(20))])
def test_an_epoch_by_blocks_shows_everything_once(sizes, window):
    order = Order(sum(sizes), seed=1, blocks=sizes, window=window)
    for epoch in (0, 1):
        found = order.permutation(epoch)
        assert np.array_equal(np.sort(found), np.arange(sum(sizes)))


def test_windows_of_blocks_are_read_one_after_the_other():
    sizes = [100] * 12
    order = Order(1200, seed=5, blocks=sizes, window=3)
    blocks = order.permutation(0).reshape(4, 300) // 100
    windows = [set(row) for row in blocks.tolist()]
    assert all(len(window) == 3 for window in windows)
    assert set.union(*windows) == set(range(12))
    assert windows != [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}, {9, 10, 11}]
    assert all(len(set(row[:30])) == 3 for row in blocks.tolist())  # mixed within
    assert windows != [
        set(row) for row in (order.permutation(1) // 100).reshape(4, 300)
    ]


def test_few_blocks_are_mixed_altogether():
    plain, blocked = Order(40, seed=2), Order(40, seed=2, blocks=[10] * 4, window=4)
    assert np.array_equal(plain.permutation(0), blocked.permutation(0))


@pytest.mark.parametrize("blocks", [None, [30, 20, 50]], ids=["plain", "blocks"])
def test_any_number_can_be_asked_for_alone(blocks):
    whole = Order(100, seed=4, blocks=blocks, window=2)
    run = np.concatenate([whole.permutation(epoch) for epoch in range(5)])
    other = pickle.loads(pickle.dumps(Order(100, seed=4, blocks=blocks, window=2)))
    numbers = np.random.default_rng(0).permutation(500)
    assert np.array_equal(other(numbers), run[numbers])
    assert [int(other(np.array([n]))[0]) for n in (499, 0, 250)] == [
        *run[[499, 0, 250]].tolist()
    ]


def test_epochs_and_seeds_differ():
    rows = [Order(50, seed=s).permutation(e) for s in (0, 1, -1) for e in (0, 1)]
    assert len({tuple(row) for row in rows}) == 6


def test_the_order_is_fixed_for_ever():
    assert Order(10, seed=0).permutation(0).tolist() == [9, 8, 6, 7, 1, 2, 0, 4, 5, 3]
    blocks = Order(10, seed=0, blocks=[2, 3, 1, 4], window=2)
    assert blocks.permutation(0).tolist() == [8, 9, 4, 2, 7, 6, 3, 5, 1, 0]
    assert Order(10**7, seed=1)(np.arange(4)).tolist() == [
        1266251,
        649827,
        6996447,
        9609751,
    ]


@pytest.mark.parametrize("length", [3, 4, 10])
def test_every_place_is_as_likely_as_any_other(length):
    keys = np.arange(20_000, dtype=np.uint64)
    for place in range(length):
        places = np.full(len(keys), place, np.uint64)
        lengths = np.full(len(keys), length, np.uint64)
        counts = np.bincount(shuffle(places, lengths, keys).astype(int))
        expected = len(keys) / length
        assert ((counts - expected) ** 2 / expected).sum() < 40  # chi², ≤ 9 degrees


def test_neighbours_are_torn_apart():
    found = Order(100_000, seed=0).permutation(0)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(found, np.arange(100_000))[0, 1]) < 0.02
    assert (np.diff(found) == 1).sum() < 10  # one is expected
    assert (found == np.arange(100_000)).sum() < 10


def test_a_huge_source_costs_only_what_is_asked():
    order = Order(10**12, seed=0)
    found = order(np.arange(10**15, 10**15 + 64))
    assert len(set(found.tolist())) == 64 and found.max() > 10**11


def test_stand_ins_are_spread_over_the_source():
    order = Order(10, seed=0)
    found = {order.another(n, attempt) for n in range(40) for attempt in (1, 2, 3)}
    assert found == set(range(10))
    assert order.another(3, 1) == Order(10, seed=0).another(3, 1)
    huge = [Order(10**9, seed).another(n, a) for seed, n, a in np.ndindex(2, 2, 2)]
    assert len(set(huge)) == 8  # each of the three matters


def test_a_key_depends_on_every_word_and_its_place():
    assert len({key(1, 2), key(2, 1), key(1, 2, 0), key(1, 3), key(0, 2)}) == 5


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(length=0), "length must be at least 1, got 0"),
        (dict(length=5, window=0), "window must be at least 1, got 0"),
        (dict(length=5, blocks=[2, 2]), "sum to 5, .* got 2 that sum to 4"),
    ],
)
def test_errors_say_what_must_hold(arguments, words):
    with pytest.raises(ValueError, match=words):
        Order(**arguments)
