"""What is in a picture: the objects, where they are, and how two of them lie.

A `Scene` is all that is known of a picture but its background, and enough to draw it
again. It is a frozen value and becomes JSON and comes back.
"""

from dataclasses import asdict, dataclass

# The six tags of GenEval (arXiv:2310.11513): what a picture and its caption are about.
CATEGORIES = (
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attr",
)
OPPOSITE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
RELATIONS = tuple(OPPOSITE)
MARGIN = 1 / 32  # of the picture's side, between two boxes of which a relation holds


@dataclass(frozen=True)
class SceneObject:
    """One object of a picture."""

    name: str
    colour: str | None  # None: the object has its own colours
    box: tuple[float, float, float, float]  # left, top, right, bottom in [0, 1]
    visible: float  # share of its pixels that no later object covers
    mirrored: bool


@dataclass(frozen=True)
class Group:
    """Objects of one name and colour, and how many of them there are."""

    name: str
    colour: str | None
    count: int


@dataclass(frozen=True)
class Scene:
    """One picture's truth; objects bottom to top, those of a group one after another.

    In the category "position" the first object is in one of the four relations to the
    second.
    """

    category: str
    objects: tuple[SceneObject, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The objects counted by name and colour, in the order of their first."""
        counts: dict[tuple[str, str | None], int] = {}
        for thing in self.objects:
            key = (thing.name, thing.colour)
            counts[key] = counts.get(key, 0) + 1
        return tuple(Group(*key, count) for key, count in counts.items())

    def to_dict(self) -> dict:
        """Return the truth as values that JSON has."""
        return {
            "category": self.category,
            "objects": [{**asdict(o), "box": list(o.box)} for o in self.objects],
        }

    @staticmethod
    def from_dict(values: dict) -> "Scene":
        """Return the scene of which these values are the `to_dict`."""
        objects = tuple(
            SceneObject(**{**thing, "box": tuple(thing["box"])})
            for thing in values["objects"]
        )
        return Scene(values["category"], objects)


def relation(first: SceneObject, second: SceneObject) -> str | None:
    """Return how `first` lies to `second`: one of RELATIONS, or None if unclear.

    It is clear when their boxes are MARGIN apart in one direction, in which their
    centres are at least twice as far from each other as in the other one.
    """
    a, b = first.box, second.box
    dx = (b[0] + b[2] - a[0] - a[2]) / 2
    dy = (b[1] + b[3] - a[1] - a[3]) / 2
    if abs(dx) >= 2 * abs(dy) and max(b[0] - a[2], a[0] - b[2]) >= MARGIN:
        return "left of" if dx > 0 else "right of"
    if abs(dy) >= 2 * abs(dx) and max(b[1] - a[3], a[1] - b[3]) >= MARGIN:
        return "above" if dy > 0 else "below"
    return None
