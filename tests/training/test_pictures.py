"""Which pictures are learned from, and which are kept to judge by."""

import pytest
import torch
from PIL import Image

from tokenflow.training.pictures import (
    DataConfig,
    Every,
    Mixed,
    heldout_batch,
    open_pictures,
)
from tokenflow.training.world import World


class Numbers:
    """A source whose pictures say which they are."""

    def __init__(self, length, first=0, blocks=None):
        self.length, self.first, self._blocks = length, first, blocks
        if blocks:
            self.blocks = lambda: blocks

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        colour = torch.full((3, 8, 8), self.first + i, dtype=torch.uint8)
        return {"image": colour, "caption": str(i)}


def numbers(source):
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


@pytest.mark.parametrize("length", [2, 19, 20, 21, 40, 41, 59])
def test_the_two_parts_are_the_whole(length):
    learned = numbers(Every(Numbers(length), kept=False))
    kept = numbers(Every(Numbers(length), kept=True))
    assert sorted(learned + kept) == list(range(length))
    assert kept == [i for i in range(length) if i % 20 == 0]


def test_blocks_keep_their_order():
    learned = Every(Numbers(45, blocks=[15, 5, 25]), kept=False)
    assert learned.blocks() == [14, 5, 23] and sum(learned.blocks()) == len(learned)
    assert numbers(learned) == [i for i in range(45) if i % 20]


def test_sources_are_read_in_turn():
    mixed = Mixed([Numbers(3), Numbers(9, first=100)])
    assert numbers(mixed) == [0, 100, 1, 101, 2, 102]
    assert set(mixed[0]) == {"image"}  # others may have no captions


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_what_is_judged(world):
    config = DataConfig(heldout_pictures=8)
    parts = [
        heldout_batch(Numbers(100), config, 8, World(rank, world))
        for rank in range(world)
    ]
    assert torch.equal(
        torch.cat(parts), heldout_batch(Numbers(100), config, 8, World())
    )


def test_ones_own_pictures_are_parted(tmp_path):
    for i in range(21):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i:02d}.png")
    learned, kept = open_pictures(DataConfig(source=str(tmp_path)), 8, 0)
    assert (len(learned), len(kept)) == (19, 2)
    both, _ = open_pictures(DataConfig(str(tmp_path), also=(str(tmp_path),)), 8, 0)
    assert len(both) == 38
    _, named = open_pictures(DataConfig(str(tmp_path), heldout=str(tmp_path)), 8, 0)
    assert len(named) == 21


def test_a_single_picture_is_too_few(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="at least 2 pictures, one to judge by"):
        open_pictures(DataConfig(source=str(tmp_path)), 8, 0)


def test_drawn_pictures_have_a_split_to_judge_by(emoji_font):
    learned, kept = open_pictures(DataConfig("glyphs", also=("scenes",)), 64, 0)
    assert kept.split == "heldout" and len(learned) > 1 << 32
