"""Pictures of the small world: the same every time, and true to what is said."""

import hashlib
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tokenflow.data.scenes import SPLITS, Scene, SceneObject, Scenes, dataset, render
from tokenflow.data.scenes.sprites import CELLS, load_sprites
from tokenflow.data.stream import Stream


@pytest.fixture
def scenes(emoji_font):
    return Scenes(seed=3, length=40)


@pytest.fixture
def grey(monkeypatch):
    """Pictures on grey, so that what differs from it is an object."""
    monkeypatch.setattr(
        dataset, "_ground", lambda s, size, *_: np.full((size, size, 3), 127, np.uint8)
    )


def drawn(scene, size, scenes):
    return render(scene, size, scenes._sprites, np.random.default_rng(0)).numpy()


def test_an_item_is_bytes_words_and_truth(scenes):
    item = scenes[0]
    assert set(item) == {"image", "caption", "scene"}
    assert item["image"].shape == (3, 64, 64) and item["image"].dtype == torch.uint8
    assert item["image"].is_contiguous()
    assert isinstance(item["caption"], str) and item["scene"] == scenes.truth(0)
    assert len(scenes) == 40


def test_seed_split_and_number_decide_the_picture(scenes):
    again, other, split = Scenes(seed=3), Scenes(seed=4), Scenes("heldout", seed=3)
    assert torch.equal(scenes.draw(7).image, again.draw(7).image)
    for different in (scenes.draw(8), other.draw(7), split.draw(7)):
        assert not torch.equal(scenes.draw(7).image, different.image)


def digests(seed):
    """What is drawn, said and asked, in a few letters each."""
    source, found = Scenes(seed=seed), []
    for index in (5, 2, 11):
        drawing = source.draw(index)
        said = repr((drawing.caption, drawing.scene, source.questions(index)))
        pixels = drawing.image.numpy().tobytes()
        found.append(hashlib.sha256(pixels + said.encode()).hexdigest())
    return found


def test_another_process_draws_the_same(scenes):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(digests, 3).result() == digests(3)


def test_workers_and_order_change_nothing(scenes):
    loader = DataLoader(scenes, batch_size=8, num_workers=2, collate_fn=list)
    for index, item in enumerate(next(iter(loader))):
        assert torch.equal(item["image"], scenes[index]["image"])
        assert item["scene"] == scenes.truth(index)


def test_a_stream_reads_them(scenes):
    batch = next(iter(Stream(scenes, size=64, batch=4, flip=False)))
    for row, index in enumerate(batch["index"].tolist()):
        assert torch.equal(batch["image"][row], scenes[index]["image"])
        assert batch["caption"][row] == scenes[index]["caption"]


def test_pickled_it_is_small_and_draws_the_same(scenes):
    scenes.draw(0)
    told = pickle.dumps(scenes)
    assert len(told) < 1000
    assert torch.equal(pickle.loads(told).draw(1).image, scenes.draw(1).image)


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_are_tight_around_what_is_drawn(scenes, split, grey):
    source = Scenes(split)
    for index in range(60):
        scene = source.truth(index)
        empty = drawn(replace(scene, objects=()), 64, source)
        for thing in scene.objects:
            alone = drawn(replace(scene, objects=(thing,)), 64, source)
            rows, columns = np.nonzero((alone != empty).any(axis=0))
            found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            edges = [edge * 64 for edge in thing.box]
            off = np.subtract(found, edges)
            assert (off[:2] >= 0).all() and (off[2:] <= 0).all()
            assert abs(off).max() <= 2, (thing, found)


def test_taking_an_object_away_changes_its_box_alone(scenes, grey):
    for index in range(60):
        scene = scenes.truth(index)
        whole = drawn(scene, 64, scenes)
        for number, thing in enumerate(scene.objects):
            rest = scene.objects[:number] + scene.objects[number + 1 :]
            less = drawn(replace(scene, objects=rest), 64, scenes)
            changed = (whole != less).any(axis=0)
            left, top, right, bottom = (int(edge * 64) for edge in thing.box)
            assert changed.any()
            assert changed[top:bottom, left:right].sum() == changed.sum()


class Numbered:
    """Sprites without edges whose n-th is drawn in the number n, to be told apart."""

    def __init__(self, sprites):
        self.sprites, self.full = sprites, []

    def sprite(self, name, colour, size):
        alpha = np.asarray(self.sprites.sprite(name, colour, size))[..., 3] > 127
        self.full.append(alpha.sum())
        number = np.full_like(alpha, len(self.full), np.uint8)
        return Image.fromarray(np.stack([number] * 3 + [alpha * np.uint8(255)], -1))


def test_the_visible_share_is_what_is_to_be_seen(scenes, grey):
    hidden = 0
    for index in range(300):
        scene, numbered = scenes.truth(index), Numbered(scenes._sprites)
        picture = render(scene, 64, numbered, np.random.default_rng(0))[0]
        for number, thing in enumerate(scene.objects, start=1):
            seen = (picture == number).sum().item()
            assert thing.visible == seen / numbered.full[number - 1]
            hidden += thing.visible < 1
    assert hidden > 30


def test_a_later_object_hides_an_earlier_one(scenes, grey):
    box = (0.25, 0.25, 0.75, 0.75)
    below = SceneObject("heart", "red", box, 1.0, False)
    above = replace(below, colour="blue")
    both = drawn(Scene("two_object", (below, above)), 64, scenes)
    assert both[2].max() > 200 and both[0, 32, 32] < both[2, 32, 32]
    swapped = drawn(Scene("two_object", (above, below)), 64, scenes)
    assert swapped[0, 32, 32] > swapped[2, 32, 32]


def test_a_mirrored_object_is_drawn_mirrored(scenes, grey):
    key = SceneObject("key", "red", (0.25, 0.25, 0.75, 0.75), 1.0, False)
    plain, turned = (
        drawn(Scene("colors", (replace(key, mirrored=m),)), 64, scenes)
        for m in (False, True)
    )
    assert np.array_equal(plain, turned[:, :, ::-1])
    assert not np.array_equal(plain, turned)


def test_a_scene_is_laid_out_alike_at_every_size(emoji_font, grey):
    for index in range(40):
        small, large = (Scenes(size=size).draw(index) for size in (64, 128))
        assert small.scene == large.scene and small.caption == large.caption
        reduced = large.image.float().unflatten(1, (64, 2)).unflatten(3, (64, 2))
        apart = (reduced.mean(dim=(2, 4)) - small.image.float()).abs().mean()
        assert apart < 2, index


@pytest.mark.parametrize("size", [32, 33, 100])
def test_other_sizes(emoji_font, size):
    for index in range(20):
        assert Scenes(size=size).draw(index).image.shape == (3, size, size)


def test_objects_stand_out_from_their_background(emoji_font):
    """Of an object's pixels more than half differ clearly from what is behind it."""
    source, shares = Scenes(), []
    sprites = load_sprites(emoji_font)
    for index in range(300):
        scene = source.truth(index)
        ground = dataset._ground(scene, 64, sprites, np.random.default_rng(index))
        picture = render(scene, 64, sprites, np.random.default_rng(index))
        apart = picture.permute(1, 2, 0).numpy().astype(float) - ground
        clear = np.linalg.norm(apart, axis=-1) > 0.2 * 255
        for thing in scene.objects:
            left, top, right, bottom = (int(edge * CELLS) for edge in thing.box)
            side = max(right - left, bottom - top)
            mask = sprites.mask(thing.name, side, thing.mirrored)
            shares.append(clear[top:bottom, left:right][mask].mean())
    assert min(shares) > 0.35 and np.quantile(shares, 0.02) > 0.7


def test_backgrounds_are_plain_and_textured(emoji_font):
    source, plain = Scenes(), []
    for index in range(200):
        scene = source.truth(index)
        rng = np.random.default_rng(index)
        ground = dataset._ground(scene, 64, source._sprites, rng)
        plain.append(np.ptp(ground, axis=(0, 1)).max() == 0)
    assert 0.3 < np.mean(plain) < 0.55  # a tenth of the textures is flat, too


def test_wrong_arguments_are_named(emoji_font):
    with pytest.raises(ValueError, match="scenes: split must be one of .*, got 'test'"):
        Scenes("test")
    with pytest.raises(ValueError, match="size must be at least 32, got 31"):
        Scenes(size=31)
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=rf"seed must be in .*, got {seed}"):
            Scenes(seed=seed)
    with pytest.raises(ValueError, match="length must be in .*, got -1"):
        Scenes(length=-1)
    for index in (-1, 5):
        with pytest.raises(
            IndexError, match=rf"index must be in \[0, 5\), got {index}"
        ):
            Scenes(length=5)[index]
    with pytest.raises(IndexError, match=r"\[0, 2\*\*32\), got -1"):
        Scenes().truth(-1)


def test_a_missing_font_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENFLOW_EMOJI_FONT", str(tmp_path / "none.ttf"))
    with pytest.raises(FileNotFoundError, match="fonts-noto-color-emoji"):
        Scenes()
