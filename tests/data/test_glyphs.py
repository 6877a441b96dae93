"""Pictures from emoji glyphs: the same ones every time, held-out glyphs held out."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tokenflow.data import backgrounds, glyphs


@pytest.fixture(scope="module")
def font(emoji_font):
    return emoji_font


@pytest.fixture
def pictures(font):
    return glyphs.GlyphPictures("train", seed=3, length=40)


def test_a_picture_is_bytes_with_what_covers_it(pictures):
    drawing = pictures.draw(0)
    assert drawing.image.shape == (3, 64, 64) and drawing.image.dtype == torch.uint8
    assert drawing.cover.shape == (64, 64) and drawing.cover.dtype == torch.int64
    seen = set(drawing.cover.unique().tolist()) - {-1}
    assert seen and seen <= set(drawing.glyphs)
    assert 1 <= len(drawing.glyphs) <= 3


def test_seed_and_number_decide_the_picture(font, pictures):
    again = glyphs.GlyphPictures("train", seed=3)
    other = glyphs.GlyphPictures("train", seed=4)
    assert torch.equal(pictures.draw(7).image, again.draw(7).image)
    assert not torch.equal(pictures.draw(7).image, pictures.draw(8).image)
    assert not torch.equal(pictures.draw(7).image, other.draw(7).image)


def test_workers_and_order_change_nothing(pictures):
    alone = torch.stack([pictures[i]["image"] for i in range(8)])
    with ThreadPoolExecutor(3) as pool:
        threaded = torch.stack([d.image for d in pool.map(pictures.draw, range(8))])
    assert torch.equal(alone, threaded)
    loader = DataLoader(pictures, batch_size=8, num_workers=2)
    assert torch.equal(alone, next(iter(loader))["image"])


def test_no_glyph_is_in_both_splits(font):
    train, heldout = (set(glyphs.GlyphPictures(s).codes) for s in glyphs.SPLITS)
    assert train and heldout and not train & heldout
    assert 0.05 < len(heldout) / len(train | heldout) < 0.16
    assert train | heldout == set(glyphs.load_glyphs(font))


def test_the_split_is_fixed_for_ever():
    held = [code for code in range(0x1F600, 0x1F640) if glyphs.is_heldout(code)]
    assert held == [0x1F603, 0x1F61A, 0x1F623, 0x1F627, 0x1F62C, 0x1F630]


def test_every_sprite_shows_something(font):
    sprites = glyphs.load_glyphs(font)
    assert len(sprites) > 1000
    for code, sprite in sprites.items():
        alpha = np.asarray(sprite)[..., 3]
        assert sprite.size == (glyphs.SPRITE, glyphs.SPRITE)
        assert (alpha > 127).mean() > 0.005, hex(code)
    assert not glyphs._PARTS & sprites.keys()


@pytest.mark.parametrize("size", [16, 64, 100])
def test_other_sizes(font, size):
    drawing = glyphs.GlyphPictures(size=size).draw(0)
    assert drawing.image.shape == (3, size, size)
    assert drawing.cover.shape == (size, size)


def test_a_missing_font_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENFLOW_EMOJI_FONT", str(tmp_path / "none.ttf"))
    with pytest.raises(FileNotFoundError, match="fonts-noto-color-emoji"):
        glyphs.font_path()


def test_a_font_that_draws_nothing_is_named(font, monkeypatch):
    monkeypatch.setattr(glyphs, "_RANGES", ((0xE000, 0xE010),))  # nobody's glyphs
    with pytest.raises(ValueError, match="must hold colour bitmaps"):
        glyphs.load_glyphs.__wrapped__(font)


def test_wrong_arguments_are_named(font):
    with pytest.raises(ValueError, match="split must be one of"):
        glyphs.GlyphPictures("test")
    with pytest.raises(ValueError, match="size must be at least 16, got 8"):
        glyphs.GlyphPictures(size=8)
    with pytest.raises(IndexError, match=r"\[0, 5\), got 5"):
        glyphs.GlyphPictures(length=5)[5]


@pytest.mark.parametrize("field", backgrounds.FIELDS, ids=lambda f: f.__name__)
def test_fields_stay_between_the_two_colours(field):
    for seed in range(20):
        values = field(np.random.default_rng(seed), 48)
        assert values.shape == (48, 48)
        assert values.min() >= 0 and values.max() <= 1


def test_backgrounds_are_colours_and_vary():
    drawn = [backgrounds.background(np.random.default_rng(i), 32) for i in range(60)]
    assert all(b.shape == (32, 32, 3) for b in drawn)
    assert all(b.min() >= 0 and b.max() <= 1 for b in drawn)
    assert len({b.tobytes() for b in drawn}) == 60
    flat = [np.ptp(b, axis=(0, 1)).max() == 0 for b in drawn]
    assert any(flat) and not all(flat)
