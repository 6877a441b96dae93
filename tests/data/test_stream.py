"""Batches are functions of their number: whoever reads them, from wherever, alike."""

import itertools
import multiprocessing
import os
import pickle
import random
import signal

import numpy as np
import pytest
import torch
from data.files import Blocked, Numbered, picture
from PIL import Image

from tokenflow.data import BrokenPicture
from tokenflow.data.stream import Stream

RAMP = torch.arange(8, dtype=torch.uint8).expand(3, 8, 8)


class Ramp(Numbered):
    """From black at the left; mirrored, it starts with 7."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "image": RAMP}


class Pictures:
    """Twenty PIL pictures of different shapes, number 4 and 9 broken."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index in (4, 9):
            raise BrokenPicture(f"picture {index} is broken")
        return {
            "image": picture(index, (20 + index, 40 - index)),
            "caption": f"ä{index}",
        }


def take(stream, count):
    return [*itertools.islice(stream, count)]


def same(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, two[name]), name
        else:
            assert value == two[name], name


def joined(batches):
    """The batches of several ranks as the one batch they share."""
    return {
        name: torch.cat([batch[name] for batch in batches])
        if isinstance(batches[0][name], torch.Tensor)
        else sum((batch[name] for batch in batches), type(batches[0][name])())
        for name in batches[0]
    }


def test_a_batch_says_what_it_holds():
    stream = Stream(Pictures(), size=16, batch=6, augment="adm")
    batch = next(iter(stream))
    assert batch["image"].shape == (6, 3, 16, 16)
    assert batch["image"].dtype == torch.uint8
    assert batch["number"].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["number"].dtype == batch["index"].dtype == torch.int64
    assert batch["caption"] == [f"ä{index}" for index in batch["index"].tolist()]
    assert batch["broken"] == len(batch["reasons"])
    assert "label" not in batch


def test_every_picture_is_seen_once_an_epoch():
    stream = Stream(Numbered(12), size=8, batch=4, flip=False)
    batches = take(stream, 6)
    for epoch in (batches[:3], batches[3:]):
        images = torch.cat([batch["image"] for batch in epoch])
        assert sorted(images[:, 0, 0, 0].tolist()) == list(range(12))
    assert not torch.equal(batches[0]["index"], batches[3]["index"])


@pytest.mark.parametrize(
    "source", [Pictures(), Blocked(300, {7, 8})], ids=["", "blocks"]
)
@pytest.mark.parametrize("batch", [6, 70])  # 70: more than a piece
def test_workers_change_nothing(source, batch):
    def batches(workers):
        stream = Stream(
            source,
            size=16,
            batch=batch,
            seed=5,
            start=2,
            workers=workers,
            augment="adm",
        )
        return take(stream, 4)

    inline = batches(0)
    for workers in (1, 2):
        for one, two in zip(inline, batches(workers), strict=True):
            same(one, two)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_share_the_batch_of_one(world):
    def batches(rank, world):
        arguments = dict(batch=8, seed=1, augment="adm", rank=rank, world=world)
        return take(Stream(Pictures(), size=16, **arguments), 6)

    alone = batches(0, 1)
    ranks = [batches(rank, world) for rank in range(world)]
    assert sum(batch["broken"] for batch in alone) > 0
    for step in range(6):
        same(alone[step], joined([rank[step] for rank in ranks]))


@pytest.mark.parametrize("world", [1, 2])
def test_shares_larger_than_a_piece_are_the_same(world):
    source = Numbered(500)
    alone = Stream(source, size=8, batch=200, flip=False).read(3)
    ranks = [
        Stream(source, size=8, batch=200, rank=r, world=world, flip=False).read(3)
        for r in range(world)
    ]
    same(alone, joined(ranks))
    assert alone["number"].tolist() == list(range(600, 800))


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_later_is_skipping(workers):
    arguments = dict(size=16, batch=5, seed=2, augment="adm")
    run = take(Stream(Pictures(), **arguments), 9)
    later = take(Stream(Pictures(), start=6, workers=workers, **arguments), 3)
    for one, two in zip(run[6:], later, strict=True):
        same(one, two)
    same(run[4], Stream(Pictures(), **arguments).read(4))


def test_iterating_again_begins_again():
    stream = Stream(Pictures(), size=16, batch=4, start=3)
    same(next(iter(stream)), next(iter(stream)))


def test_a_stream_survives_pickling():
    stream = Stream(Pictures(), size=16, batch=4, augment="adm")
    same(stream.read(2), pickle.loads(pickle.dumps(stream)).read(2))


def test_the_seed_decides_order_crop_and_flip():
    arguments = dict(size=16, batch=20, augment="adm")
    one, two = (Stream(Pictures(), seed=s, **arguments).read(0) for s in (0, 1))
    assert not torch.equal(one["index"], two["index"])
    shared = {i: n for n, i in enumerate(one["index"].tolist())}
    pairs = [(shared[i], n) for n, i in enumerate(two["index"].tolist()) if i in shared]
    differ = [not torch.equal(one["image"][a], two["image"][b]) for a, b in pairs]
    assert len(pairs) > 10 and sum(differ) > len(pairs) * 0.7


def test_an_epoch_later_the_same_picture_is_cut_elsewhere():
    gradient = Image.linear_gradient("L").convert("RGB")

    class One:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return {"image": gradient}

    stream = Stream(One(), size=64, batch=12, augment="adm")
    images = stream.read(0)["image"]
    assert len({image.numpy().tobytes() for image in images}) > 4


def test_the_draws_are_fixed_for_ever():
    batch = Stream(Ramp(5, broken={2}), size=8, batch=12, seed=3).read(1)
    assert batch["index"].tolist() == [4, 3, 1, 1, 3, 4, 4, 0, 4, 3, 1, 0]
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 0, 7, 7, 7, 7, 0, 7, 0, 7, 7, 0]


def test_about_half_are_mirrored_and_flip_false_mirrors_none():
    mirrored = Stream(Ramp(9), size=8, batch=400).read(0)["image"][:, 0, 0, 0] == 7
    assert 160 < mirrored.sum() < 240
    plain = Stream(Ramp(9), size=8, batch=40, flip=False).read(0)["image"]
    assert torch.equal(plain, RAMP.expand(40, 3, 8, 8))


def test_a_broken_picture_is_replaced_and_counted():
    source = Numbered(20, broken={3, 11})
    stream = Stream(source, size=8, batch=20, flip=False)
    batch = stream.read(0)
    whole = Stream(Numbered(20), size=8, batch=20, flip=False).read(0)
    assert batch["broken"] >= 2
    assert {"picture 3 is broken", "picture 11 is broken"} <= set(batch["reasons"])
    assert torch.equal(batch["image"][:, 0, 0, 0].long(), batch["index"])
    changed = batch["index"] != whole["index"]
    assert set(whole["index"][changed].tolist()) == {3, 11}
    assert not set(batch["index"].tolist()) & {3, 11}


def test_a_replacement_depends_on_seed_and_number():
    found = set()
    for seed in range(6):
        stream = Stream(Numbered(100, broken={50}), size=8, batch=100, seed=seed)
        batch, whole = (
            stream.read(0),
            Stream(Numbered(100), size=8, batch=100, seed=seed),
        )
        found.add(batch["index"][whole.read(0)["index"] == 50].item())
    assert len(found) > 3


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_in_a_row_is_an_error_that_names_them(workers):
    source = Numbered(30, broken=range(30))
    stream = Stream(source, size=8, batch=4, attempts=5, workers=workers)
    with pytest.raises(
        BrokenPicture, match=r"5 pictures in a row.*picture \d+ is broken"
    ):
        next(iter(stream))


def test_attempts_counts_the_picture_itself():
    source = Numbered(1000, broken=range(999))
    with pytest.raises(BrokenPicture, match="1 pictures in a row"):
        Stream(source, size=8, batch=8, attempts=1).read(0)


class Failing(Numbered):
    error = KeyError

    def __getitem__(self, index):
        raise self.error(f"no such thing: {index}")


class Dying(Numbered):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("error", [KeyError, RuntimeError, ValueError])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_source_is_heard(workers, error):
    source = Failing(9)
    source.error = error
    with pytest.raises(error, match="no such thing") as caught:
        next(iter(Stream(source, size=8, batch=3, workers=workers)))
    assert caught.type is error and "died" not in str(caught.value)
    assert not multiprocessing.active_children()


def test_workers_end_with_the_iteration():
    batches = iter(Stream(Numbered(9), size=8, batch=3, workers=2))
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()


@pytest.mark.timeout(60)
def test_a_killed_worker_is_an_error_not_a_wait():
    with pytest.raises(RuntimeError, match=r"stream: a worker process died.*memory"):
        next(iter(Stream(Dying(9), size=8, batch=3, workers=1)))


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_numbers_and_threads_are_left_alone(workers):
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1]
    threads = torch.get_num_threads()
    take(Stream(Pictures(), size=16, batch=4, augment="adm", workers=workers), 2)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])
    assert torch.get_num_threads() == threads


def test_captions_and_labels_are_passed_on_nothing_else():
    batch = Stream(Numbered(9, caption="№ {}"), size=8, batch=3).read(0)
    assert batch["caption"] == [f"№ {index}" for index in batch["index"].tolist()]
    assert "other" not in batch and "label" not in batch


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(size=0), "size must be at least 1, got 0"),
        (dict(batch=0), "batch must be at least 1, got 0"),
        (dict(start=-1), "start must be at least 0, got -1"),
        (dict(workers=-1), "workers must be at least 0, got -1"),
        (dict(attempts=0), "attempts must be at least 1, got 0"),
        (dict(world=3), "batch must be a multiple of world = 3, got 4"),
        (dict(rank=2, world=2), r"rank must be in \[0, 2\), got 2"),
        (dict(augment="adn"), r"augment must be one of \['none', 'adm'\], got 'adn'"),
        (dict(source=Numbered(0)), "source must hold at least one sample"),
    ],
)
def test_errors_say_what_must_hold(arguments, words):
    with pytest.raises(ValueError, match=f"stream: .*{words}"):
        Stream(**{"source": Numbered(9), "size": 8, "batch": 4, **arguments})
