"""The small world's vocabulary: fixed, told apart by eye, and kept back by name."""

import hashlib
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenflow.data.scenes import (
    COLOURS,
    HELDOUT_COLOURS,
    HELDOUT_PAIRS,
    OBJECTS,
    SEEN,
    UNSEEN,
    heldout_colour,
    heldout_pair,
)
from tokenflow.data.scenes.sprites import Sprites, load_sprites, tint

DOCS = Path(__file__).resolve().parents[2] / "docs" / "scenes.md"
HUED = [name for name, thing in OBJECTS.items() if thing.takes_hue]


@pytest.fixture(scope="module")
def sprites(emoji_font):
    return load_sprites(emoji_font)


def test_sixty_objects_of_which_twelve_are_never_seen():
    assert len(OBJECTS) == 60 and len(SEEN) == 48 and len(UNSEEN) == 12
    assert len({thing.code for thing in OBJECTS.values()}) == 60
    assert len(HUED) == 30 and sum(OBJECTS[name].seen for name in HUED) == 24
    for name, thing in OBJECTS.items():
        assert name == thing.name and name == name.lower()
        unicodedata.name(chr(thing.code))  # an assigned code point, or ValueError


def test_plurals_are_english():
    plurals = {thing.name: thing.plural for thing in OBJECTS.values()}
    odd = {n: p for n, p in plurals.items() if p != f"{n}s"}
    assert odd == {
        "butterfly": "butterflies",
        "cactus": "cacti",
        "dress": "dresses",
        "fish": "fish",
        "leaf": "leaves",
        "octopus": "octopuses",
        "sheep": "sheep",
        "snowman": "snowmen",
    }


def test_what_is_held_out_is_fixed_for_ever():
    assert UNSEEN == (
        "bow",
        "camera",
        "crown",
        "flamingo",
        "giraffe",
        "hat",
        "magnet",
        "pizza",
        "snail",
        "teapot",
        "train",
        "watermelon",
    )
    assert (len(HELDOUT_PAIRS), len(HELDOUT_COLOURS)) == (106, 24)
    said = repr((sorted(HELDOUT_PAIRS), sorted(HELDOUT_COLOURS)))
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == "ad7317eea8c373de"


def test_training_still_shows_every_object_in_colours_and_company():
    partners = Counter(name for pair in HELDOUT_PAIRS for name in pair)
    assert max(partners.values()) <= 9  # of 47
    colours = Counter(name for name, _ in HELDOUT_COLOURS)
    assert max(colours.values()) <= 3  # of 6
    assert {colour for _, colour in HELDOUT_COLOURS} == set(COLOURS)


def test_a_pair_is_held_out_in_either_order():
    first, second = sorted(HELDOUT_PAIRS)[0]
    assert heldout_pair(first, second) and heldout_pair(second, first)
    assert not heldout_pair("cat", "cat")
    assert all(heldout_colour(*pair) for pair in HELDOUT_COLOURS)
    assert not heldout_colour("cat", None)


@pytest.mark.parametrize("colour", COLOURS)
def test_the_colour_is_what_most_of_an_object_shows(sprites, colour):
    for name in HUED:
        sprite = sprites.sprite(name, colour, sprites.cells(name, 48))
        pixels = np.asarray(sprite)[np.asarray(sprite)[..., 3] > 127, :3]
        hsv = np.asarray(Image.fromarray(pixels[None]).convert("HSV"))[0] / 255
        hue = 2 * np.pi * hsv[:, 0]
        apart = {
            other: abs((hsv[:, 0] * 360 - shade.hue + 180) % 360 - 180)
            for other, shade in COLOURS.items()
        }
        nearest = np.array([*apart.values()]).argmin(axis=0)
        vivid = hsv[:, 1] > 0.2
        share = (vivid & (nearest == [*COLOURS].index(colour))).mean()
        assert share > 0.5, (name, colour, share)
        own = vivid & (apart[colour] < 40)
        mean = np.degrees(np.angle(np.exp(1j * hue[own]).mean()))
        off = abs((mean - COLOURS[colour].hue + 180) % 360 - 180)
        assert off < 8, (name, colour, off)


def test_named_colours_are_apart():
    rgb = {}
    for name, colour in COLOURS.items():
        one = np.array([colour.hue / 360, colour.saturation, colour.value])
        pixel = Image.fromarray(np.rint(one * 255).astype(np.uint8)[None, None], "HSV")
        rgb[name] = np.array(pixel.convert("RGB"), float)[0, 0]
    apart = {
        (a, b): np.linalg.norm(rgb[a] - rgb[b]) for a, b in combinations(COLOURS, 2)
    }
    assert min(apart.values()) > 100, min(apart, key=apart.get)


def test_what_has_no_hue_of_the_glyphs_stays_as_it_is(sprites):
    apple = sprites._glyphs["apple", None]
    before, after = (np.asarray(g, int) for g in (apple, tint(apple, COLOURS["blue"])))
    changed = abs(before - after)[..., :3].sum(-1) > 30
    leaf = (before[..., 1] > before[..., 0] + 20) & (before[..., 3] > 127)
    assert leaf.sum() > 200 and not (changed & leaf).any()
    assert np.array_equal(before[..., 3], after[..., 3])


def test_no_two_objects_look_alike(sprites):
    """At 24 pixels, on grey, with the same colour where they take one."""
    looks = {}
    for name, thing in OBJECTS.items():
        width, height = sprites.cells(name, 24)
        colour = "red" if thing.takes_hue else None
        square = Image.new("RGB", (24, 24), (128, 128, 128))
        sprite = sprites.sprite(name, colour, (width, height))
        square.paste(sprite, ((24 - width) // 2, (24 - height) // 2), sprite)
        looks[name] = np.asarray(square, np.float32) / 255
    apart = {
        pair: ((looks[pair[0]] - looks[pair[1]]) ** 2).mean() ** 0.5
        for pair in combinations(OBJECTS, 2)
    }
    closest = min(apart, key=apart.get)
    assert apart[closest] > 0.11, (closest, apart[closest])


def test_a_sprite_has_the_cells_of_its_object(sprites):
    for name in OBJECTS:
        cells = sprites.cells(name, 20)
        mask = sprites.mask(name, 20, False)
        assert max(cells) == 20 and mask.shape == cells[::-1]
        assert np.array_equal(sprites.mask(name, 20, True), mask[:, ::-1])
        assert mask.mean() > 0.2, name


def test_a_font_without_an_object_is_named(emoji_font, monkeypatch):
    from tokenflow.data.scenes import sprites as module

    monkeypatch.setattr(module, "draw_glyph", lambda font, code: None)
    with pytest.raises(ValueError, match=r"colour bitmaps .* apple \(U\+1F34E\)"):
        Sprites(emoji_font)


def vocabulary():
    """The table of docs/scenes.md, line by line."""
    yield "| object | plural | code point | Unicode name | colour | in training |"
    yield "|---|---|---|---|---|---|"
    for thing in OBJECTS.values():
        code, name = f"U+{thing.code:04X}", unicodedata.name(chr(thing.code))
        colour = "one of the six" if thing.takes_hue else "its own"
        kept = "yes" if thing.seen else "never"
        yield f"| {thing.name} | {thing.plural} | {code} | {name} | {colour} | {kept} |"


def test_the_docs_have_the_vocabulary_of_the_code():
    if not DOCS.exists():
        pytest.skip("not a checkout")
    text = DOCS.read_text()
    assert "\n".join(vocabulary()) in text
    for name, colour in COLOURS.items():
        assert f"| {name} | {colour.hue:g}° |" in text
