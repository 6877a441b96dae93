"""The vocabulary of the small world: sixty objects, six colours, and what is kept back.

Every object is one glyph of Noto Color Emoji under a plain English name. Half of them
take a hue: glyphs of mostly one saturated hue, which is then replaced by that of a
named colour. Twelve objects (`seen` is False) are in no training picture, and of the
others some pairs, and some pairs of object and colour, never meet in one: which,
says a hash of their names.
Source: ours. The names shorten those of the Unicode Character Database.
"""

import hashlib
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Thing:
    """One object: its name, plural, code point, and whether it takes a hue."""

    name: str
    plural: str
    code: int
    takes_hue: bool
    seen: bool = True  # False: in no training picture


@dataclass(frozen=True)
class Colour:
    """A named colour: hue in degrees, saturation and value in [0, 1]."""

    hue: float
    saturation: float
    value: float


COLOURS = {
    "red": Colour(0, 0.80, 0.85),
    "yellow": Colour(52, 0.85, 1.00),
    "green": Colour(125, 0.75, 0.70),
    "blue": Colour(215, 0.80, 0.85),
    "purple": Colour(275, 0.65, 0.70),
    "pink": Colour(328, 0.45, 1.00),
}

_PLURALS = {
    "butterfly": "butterflies",
    "cactus": "cacti",
    "dress": "dresses",
    "fish": "fish",
    "leaf": "leaves",
    "octopus": "octopuses",
    "sheep": "sheep",
    "snowman": "snowmen",
}

# name, code point; in the order of the names
_HUED = (
    ("apple", 0x1F34E),
    ("backpack", 0x1F392),
    ("balloon", 0x1F388),
    ("bell", 0x1F514),
    ("book", 0x1F4D5),
    ("boot", 0x1F462),
    ("bucket", 0x1FAA3),
    ("cap", 0x1F9E2),
    ("car", 0x1F697),
    ("chair", 0x1FA91),
    ("crab", 0x1F980),
    ("dress", 0x1F457),
    ("fish", 0x1F41F),
    ("guitar", 0x1F3B8),
    ("heart", 0x2764),
    ("key", 0x1F511),
    ("leaf", 0x1F341),
    ("octopus", 0x1F419),
    ("sofa", 0x1F6CB),
    ("star", 0x2B50),
    ("tent", 0x26FA),
    ("trumpet", 0x1F3BA),
    ("turtle", 0x1F422),
    ("umbrella", 0x2602),
)
_HUED_UNSEEN = (
    ("bow", 0x1F380),
    ("crown", 0x1F451),
    ("flamingo", 0x1F9A9),
    ("magnet", 0x1F9F2),
    ("snail", 0x1F40C),
    ("teapot", 0x1FAD6),
)
_OWN = (
    ("banana", 0x1F34C),
    ("bee", 0x1F41D),
    ("butterfly", 0x1F98B),
    ("cactus", 0x1F335),
    ("carrot", 0x1F955),
    ("cat", 0x1F431),
    ("clock", 0x23F0),
    ("dog", 0x1F415),
    ("drum", 0x1F941),
    ("elephant", 0x1F418),
    ("football", 0x26BD),
    ("hamburger", 0x1F354),
    ("house", 0x1F3E0),
    ("ice cream", 0x1F366),
    ("mushroom", 0x1F344),
    ("owl", 0x1F989),
    ("penguin", 0x1F427),
    ("pineapple", 0x1F34D),
    ("plane", 0x2708),
    ("rocket", 0x1F680),
    ("sheep", 0x1F411),
    ("snowman", 0x26C4),
    ("spider", 0x1F577),
    ("sunflower", 0x1F33B),
)
_OWN_UNSEEN = (
    ("camera", 0x1F4F7),
    ("giraffe", 0x1F992),
    ("hat", 0x1F3A9),
    ("pizza", 0x1F355),
    ("train", 0x1F682),
    ("watermelon", 0x1F349),
)


OBJECTS = {
    thing.name: thing
    for thing in sorted(
        (
            Thing(name, _PLURALS.get(name, f"{name}s"), code, takes_hue, seen)
            for table, takes_hue, seen in (
                (_HUED, True, True),
                (_HUED_UNSEEN, True, False),
                (_OWN, False, True),
                (_OWN_UNSEEN, False, False),
            )
            for name, code in table
        ),
        key=lambda thing: thing.name,
    )
}
SEEN = tuple(name for name, thing in OBJECTS.items() if thing.seen)
UNSEEN = tuple(name for name, thing in OBJECTS.items() if not thing.seen)


def _one_in(n: int, first: str, second: str) -> bool:
    digest = hashlib.sha256(f"{first} + {second}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % n == 0


# What never meets in a training picture: about a tenth of the pairs of seen objects
# (in the order of their names), and a sixth of the pairs of seen object and colour.
HELDOUT_PAIRS = frozenset(pair for pair in combinations(SEEN, 2) if _one_in(10, *pair))
HELDOUT_COLOURS = frozenset(
    (name, colour)
    for name in SEEN
    if OBJECTS[name].takes_hue
    for colour in COLOURS
    if _one_in(6, name, colour)
)


def heldout_pair(first: str, second: str) -> bool:
    """Say whether two objects, in either order, never meet in a training picture."""
    return (min(first, second), max(first, second)) in HELDOUT_PAIRS


def heldout_colour(name: str, colour: str | None) -> bool:
    """Say whether an object has this colour in no training picture."""
    return (name, colour) in HELDOUT_COLOURS
