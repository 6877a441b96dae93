"""What a scene holds: counts, places, relations, and what each split may show."""

import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from tokenflow.data.scenes import (
    CATEGORIES,
    COLOURS,
    MIXTURE,
    OBJECTS,
    RELATIONS,
    SEEN,
    SPLITS,
    UNSEEN,
    Group,
    Scene,
    SceneObject,
    Scenes,
    heldout_colour,
    heldout_pair,
    relation,
)
from tokenflow.data.scenes.layout import VISIBLE
from tokenflow.data.scenes.plans import draw_plan
from tokenflow.data.scenes.sprites import CELLS
from tokenflow.data.scenes.truth import OPPOSITE

DRAWN = 2000


@pytest.fixture(scope="module")
def truths(emoji_font):
    """The first truths of every split, without pixels."""
    return {
        split: [Scenes(split).truth(index) for index in range(DRAWN)]
        for split in SPLITS
    }


def at(left, top, right, bottom, name="cat", colour=None):
    return SceneObject(name, colour, (left, top, right, bottom), 1.0, False)


def transposed(thing):
    left, top, right, bottom = thing.box
    return at(top, left, bottom, right)


def held(scene):
    """The held-out pairs of objects and of object and colour in a scene."""
    names = sorted({thing.name for thing in scene.objects})
    pairs = {two for two in combinations(names, 2) if heldout_pair(*two)}
    hues = {(o.name, o.colour) for o in scene.objects}
    return pairs, {hue for hue in hues if heldout_colour(*hue)}


@pytest.mark.parametrize(
    "second, how",
    [
        ((0.5, 0.25, 0.75, 0.5), "left of"),
        ((0.53125, 0.25, 0.75, 0.5), "left of"),
        ((0.28125, 0.25, 0.5, 0.5), "left of"),  # the margin itself
        ((0.265625, 0.25, 0.5, 0.5), None),  # half of it
        ((0.25, 0.25, 0.5, 0.5), None),  # touching
        ((0.5, 0.5, 0.75, 0.75), "left of"),  # dx = 2·dy
        ((0.5, 0.515625, 0.75, 0.765625), None),  # a little more oblique
        ((0.5, 0.75, 0.75, 1.0), None),  # diagonal
        ((0.0, 0.625, 0.25, 0.875), "above"),
        ((0.0, 0.0, 0.25, 0.21875), "below"),
    ],
)
def test_a_relation_worked_by_hand(second, how):
    first, second = at(0.0, 0.25, 0.25, 0.5), at(*second)
    assert relation(first, second) == how
    assert relation(second, first) == (how and OPPOSITE[how])
    turned = {"left of": "above", "above": "left of", "below": "right of", None: None}
    assert relation(transposed(first), transposed(second)) == turned[how]


def test_objects_are_counted_by_name_and_colour():
    red, blue, cat = (
        at(0, 0, 1, 1, *key) for key in (("car", "red"), ("car", "blue"), ("cat",))
    )
    groups = Scene("counting", (red, cat, blue, red)).groups
    assert groups == (
        Group("car", "red", 2),
        Group("cat", None, 1),
        Group("car", "blue", 1),
    )


def test_a_scene_becomes_json_and_comes_back(truths):
    for scene in truths["train"][:50]:
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


@pytest.mark.parametrize("split", SPLITS)
def test_truths_keep_what_is_promised(truths, split):
    for scene in truths[split]:
        assert 1 <= len(scene.objects) <= 5
        for thing in scene.objects:
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            assert all((edge * CELLS).is_integer() for edge in thing.box)
            assert VISIBLE <= thing.visible <= 1
            assert OBJECTS[thing.name].takes_hue == (thing.colour in COLOURS)


@pytest.mark.parametrize("split", SPLITS)
def test_a_category_is_what_its_name_says(truths, split):
    for scene in truths[split]:
        counts = [group.count for group in scene.groups]
        colours = [group.colour for group in scene.groups]
        assert len({group.name for group in scene.groups}) == len(counts)
        match scene.category:
            case "single_object":
                assert counts == [1]
            case "colors":
                assert counts == [1] and colours[0]
            case "two_object":
                assert counts == [1, 1]
            case "position":
                assert counts == [1, 1] and relation(*scene.objects) in RELATIONS
            case "color_attr":
                assert counts == [1, 1] and all(colours) and len(set(colours)) == 2
            case "counting":
                assert counts[0] >= 2 and len(counts) <= 2 and sum(counts) <= 5
            case other:
                raise AssertionError(other)


def test_categories_are_as_frequent_as_said(truths):
    assert sum(MIXTURE.values()) == pytest.approx(1) and set(MIXTURE) == {*CATEGORIES}
    for split in ("train", "heldout", "objects"):
        found = Counter(scene.category for scene in truths[split])
        for category, share in MIXTURE.items():
            spread = 4 * (share * (1 - share) / DRAWN) ** 0.5
            assert abs(found[category] / DRAWN - share) < spread, (split, category)


def test_relations_and_colours_are_spread(truths):
    related = [s for s in truths["train"] if s.category == "position"]
    found = Counter(relation(*scene.objects) for scene in related)
    assert min(found[how] for how in RELATIONS) > 0.2 * len(related)
    colours = Counter(o.colour for s in truths["train"] for o in s.objects if o.colour)
    assert min(colours[c] for c in COLOURS) > 0.12 * sum(colours.values())


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_training_shows_nothing_that_is_held_out(truths, split):
    shown = {thing.name for scene in truths[split] for thing in scene.objects}
    assert shown == set(SEEN)
    for scene in truths[split]:
        assert held(scene) == (set(), set()), scene


def test_unseen_objects_are_in_every_picture_of_their_split(truths):
    shown = set()
    for scene in truths["objects"]:
        assert scene.objects[0].name in UNSEEN
        assert held(scene) == (set(), set())
        shown |= {thing.name for thing in scene.objects}
    assert shown == set(OBJECTS)


def test_the_combination_is_what_the_caption_says(truths):
    for scene in truths["combinations"]:
        pairs, hues = held(scene)
        assert {thing.name for thing in scene.objects} <= set(SEEN)
        match scene.category:
            case "colors":
                assert hues
            case "color_attr":
                assert pairs or hues
            case _:
                assert pairs and not hues


def test_splits_share_no_scene(truths):
    """The heldout split has the rules of training, and other pictures."""
    seen = [set(scenes) for scenes in truths.values()]
    for one, other in combinations(seen, 2):
        assert not one & other
    assert len(seen[0]) > 0.99 * DRAWN


def test_a_truth_depends_on_seed_and_number_alone(truths):
    again, other = Scenes(size=128, length=3), Scenes(seed=1)
    order = np.random.default_rng(0).permutation(100)
    assert [again.truth(i) for i in order] == [truths["train"][i] for i in order]
    assert all(other.truth(i) != truths["train"][i] for i in range(100))


def test_a_plan_of_no_split_or_category_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="split must be one of .*, got 'test'"):
        draw_plan("counting", "test", rng)
    with pytest.raises(ValueError, match="category must be one of .*, got 'colours'"):
        draw_plan("colours", "train", rng)
    with pytest.raises(ValueError, match="'combinations', got 'single_object'"):
        draw_plan("single_object", "combinations", rng)
