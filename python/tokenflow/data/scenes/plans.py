"""Which objects meet in a picture: drawn by category, within the rules of a split.

A `Plan` is a picture before anything has a place: groups of objects and, for the
category "position", how the first is to lie to the second.

train         Only seen objects; no held-out pair of objects, none of object and colour.
heldout       The same rules, other pictures.
objects       The first object is one of the unseen twelve, the others may be any.
combinations  Seen objects. What the caption says is held out: two objects that never
              meet in training (two_object, position, counting), a colour that an
              object never has there (colors), or one of both (color_attr).
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tokenflow.data.scenes.objects import (
    COLOURS,
    OBJECTS,
    SEEN,
    UNSEEN,
    heldout_colour,
    heldout_pair,
)
from tokenflow.data.scenes.truth import CATEGORIES, RELATIONS, Group

SPLITS = ("train", "heldout", "objects", "combinations")
MIXTURE = {
    "single_object": 0.15,
    "two_object": 0.20,
    "counting": 0.25,
    "colors": 0.10,
    "position": 0.20,
    "color_attr": 0.10,
}
MOST = 5  # objects in a picture
_COLOURS = tuple(COLOURS)
_HUED = frozenset(name for name, thing in OBJECTS.items() if thing.takes_hue)
Rng = np.random.Generator


@dataclass(frozen=True)
class Plan:
    """What a picture is to show."""

    category: str
    groups: tuple[Group, ...]
    relation: str | None = None  # of the first group's object to the second's


def pick(rng: Rng, values):
    """Return one of `values`, each as likely; faster than `rng.choice`."""
    return values[int(rng.random() * len(values))]


def check_split(split: str) -> None:
    """Raise ValueError where there is no such split."""
    if split not in SPLITS:
        raise ValueError(f"scenes: split must be one of {SPLITS}, got {split!r}")


def check_category(category: str, split: str) -> None:
    """Raise ValueError where there is no such split, or no such category in it."""
    check_split(split)
    if category not in categories(split):
        raise ValueError(
            f"scenes: category must be one of {categories(split)} in the split "
            f"{split!r}, got {category!r}"
        )


def categories(split: str) -> tuple[str, ...]:
    """Return the categories of a split: one object alone is no combination."""
    skipped = "single_object" if split == "combinations" else None
    return tuple(category for category in CATEGORIES if category != skipped)


def draw_category(split: str, rng: Rng) -> str:
    """Return a category with the probabilities of MIXTURE."""
    choices = categories(split)
    at = rng.random() * sum(MIXTURE[category] for category in choices)
    for category in choices:
        at -= MIXTURE[category]
        if at < 0:
            return category
    return choices[-1]


def _counts(category: str, split: str, rng: Rng) -> tuple[int, ...]:
    """How many there are to be of each group."""
    if category in ("single_object", "colors"):
        return (1,)
    if category != "counting":
        return (1, 1)
    if split == "combinations":
        first, paired = pick(rng, range(2, MOST)), True
    else:
        first = pick(rng, range(2, MOST + 1))
        paired = first < MOST and rng.random() < 0.4
    return (first, pick(rng, range(1, MOST - first + 1))) if paired else (first,)


def _names(pools: list[tuple[str, ...]], rng: Rng) -> tuple[str, ...]:
    """One name from each pool, all different."""
    while True:
        names = tuple(pick(rng, pool) for pool in pools)
        if len(set(names)) == len(names):
            return names


def _keeps_to(split: str, plan: Plan) -> bool:
    """Say whether the split may have this plan."""
    names = [group.name for group in plan.groups]
    pair = any(heldout_pair(*two) for two in combinations(names, 2))
    colour = any(heldout_colour(group.name, group.colour) for group in plan.groups)
    if split != "combinations":
        return not pair and not colour
    if plan.category == "color_attr":
        return pair or colour
    return colour if plan.category == "colors" else pair and not colour


def draw_plan(category: str, split: str, rng: Rng) -> Plan:
    """Return a random plan of a category that keeps to the rules of the split.

    Raises:
        ValueError: Unknown category or split, or the split has no such category.
    """
    check_category(category, split)
    coloured = category in ("colors", "color_attr")
    first, other = SEEN, SEEN
    if split == "objects":
        first, other = UNSEEN, SEEN + UNSEEN
    if coloured:
        first, other = (tuple(n for n in p if n in _HUED) for p in (first, other))
    counts = _counts(category, split, rng)
    related = pick(rng, RELATIONS) if category == "position" else None
    while True:
        names = _names([first, other][: len(counts)], rng)
        hues = [pick(rng, _COLOURS) if name in _HUED else None for name in names]
        if coloured and len(set(hues)) < len(hues):
            continue  # two attributes to bind, so they differ
        groups = tuple(map(Group, names, hues, counts))
        plan = Plan(category, groups, related)
        if _keeps_to(split, plan):
            return plan
