"""What is judged: named, read when asked for, in order, the broken ones left out."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from tokenflow.evaluation import pictures
from tokenflow.evaluation.pictures import Pictures, batches
from tokenflow.tokenizer.processing import fit


def never(name, error):
    raise AssertionError(f"{name}: {error}")


def numbered(count, broken=(), readers=0):
    """Pictures of one pixel each that say their number."""

    def read(i):
        if i in broken:
            raise ValueError(f"picture {i} is broken")
        return torch.full((3, 1, 1), i, dtype=torch.uint8)

    return Pictures([f"n{i}" for i in range(count)], read, readers)


def numbers(parts):
    return [part[:, 0, 0, 0].tolist() for part in parts]


@pytest.mark.parametrize("readers", [0, 1, 5])
def test_batches_are_full_and_in_order(readers):
    found = numbers(batches(numbered(7, readers=readers), 3, never))
    assert found == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("readers", [0, 3])
def test_broken_pictures_are_told_and_leave_no_gap(readers):
    told = []
    source = numbered(7, broken=(0, 4), readers=readers)
    found = batches(source, 2, lambda name, error: told.append((name, str(error))))
    assert numbers(found) == [[1, 2], [3, 5], [6]]
    assert told == [("n0", "picture 0 is broken"), ("n4", "picture 4 is broken")]


def test_nothing_is_read_far_ahead():
    """However many there are, a batch or two are in memory."""
    read, lock = [], threading.Lock()

    def count(i):
        with lock:
            read.append(i)
        return torch.zeros(3, 1, 1, dtype=torch.uint8)

    parts = batches(Pictures([str(i) for i in range(500)], count, 4), 8, never)
    next(parts)
    assert len(read) <= 8 + 8 + 1
    parts.close()
    assert len(read) < 30


def test_other_mistakes_are_not_taken_for_broken_pictures():
    def wrong(i):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        next(batches(Pictures(["one"], wrong, 2), 1, never))


def test_photographs_are_those_installed():
    found = pictures.load("photos", size=64)
    (images,) = batches(found, 64, never)
    assert images.shape == (len(found), 3, 64, 64) and images.dtype == torch.uint8
    assert "scikit-image/astronaut.png" in found.names
    assert any(name.startswith("scikit-learn/") for name in found.names)


def test_a_folder_is_read_in_order_of_names(tmp_path):
    for i, name in enumerate(("b.png", "a.jpg", "deep/z.png", ".hidden.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (90, 70), (60 * i, 0, 0)).save(tmp_path / name)
    (tmp_path / "c.txt").write_text("no picture")
    found = pictures.load(str(tmp_path), size=32)
    assert list(found.names) == ["a.jpg", "b.png", "deep/z.png"]
    (images,) = batches(found, 64, never)
    assert images.shape == (3, 3, 32, 32) and images[2, 0, 0, 0] == 120
    assert list(pictures.load(str(tmp_path), size=32, count=1).names) == ["a.jpg"]


def test_a_photograph_is_cut_to_its_centre(tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (50, 90, 3), dtype=np.uint8))
    picture.save(tmp_path / "one.png")
    (images,) = batches(pictures.load(str(tmp_path), size=32), 1, never)
    want = np.array(fit(picture, 32))
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), want)


@pytest.mark.parametrize("kind", ["glyphs", "scenes"])
def test_drawn_pictures_are_the_same_every_time(kind, emoji_font):
    first, again = (pictures.load(kind, size=64, count=4) for _ in range(2))
    (one,), (other,) = batches(first, 4, never), batches(again, 4, never)
    assert one.shape == (4, 3, 64, 64) and torch.equal(one, other)
    assert first.names[3] == f"{kind}/3"
    assert len(pictures.load(kind, size=64)) == 512


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="'photos' or a folder"):
        pictures.load(str(tmp_path / "none"), size=32)
    with pytest.raises(FileNotFoundError, match="must hold pictures"):
        pictures.load(str(tmp_path), size=32)
    with pytest.raises(ValueError, match="count must be at least 1"):
        pictures.load("glyphs", size=32, count=0)
