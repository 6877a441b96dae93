"""What is said of a picture: captions, questions with answers, and bare prompts.

Captions are put together from the same fields as the picture, so they are true of it.
They name a colour only where the category is about colours. Questions are balanced so
that the question alone tells little: one object asked for is there and one is not, a
relation is as often its opposite, counts from one to five are equally likely. Prompts
have the format of GenEval's metadata (arXiv:2310.11513) and no picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from tokenflow.data.scenes.objects import OBJECTS
from tokenflow.data.scenes.plans import Rng, check_category, draw_plan, pick
from tokenflow.data.scenes.truth import OPPOSITE, Group, Scene, relation

QUESTION_KINDS = ("existence", "count", "colour", "position", "naming")
NUMBERS = ("no", "one", "two", "three", "four", "five")
_FRAMES = ("{}", "{}", "a picture of {}", "an image of {}", "there {be} {}")
_SIDES = {"left of": "to the left of", "right of": "to the right of"}
# An absent object is asked for instead of one of its own kind, or its name would tell.
_ALIKE = {
    (seen, hued): [
        name
        for name, thing in OBJECTS.items()
        if (thing.seen, thing.takes_hue) == (seen, hued)
    ]
    for seen in (True, False)
    for hued in (True, False)
}
_ONE_IN_COUNTED = 0.045  # pictures without counting whose one object is counted


@dataclass(frozen=True)
class Question:
    """A question about a picture; the answer is short and in lower case."""

    kind: str  # one of QUESTION_KINDS
    question: str
    answer: str


def article(words: str) -> str:
    """Return the words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def phrase(group: Group, *, coloured: bool = False) -> str:
    """Return a group in words: "a cat", "two apples", "a red apple"."""
    thing = OBJECTS[group.name]
    colour = f"{group.colour} " if coloured and group.colour else ""
    if group.count == 1:
        return article(colour + thing.name)
    return f"{NUMBERS[group.count]} {colour}{thing.plural}"


def _related(first: Group, second: Group, how: str, rng: Rng) -> str:
    if rng.random() < 0.5:
        first, second, how = second, first, OPPOSITE[how]
    if rng.random() < 0.3:
        how = _SIDES.get(how, how)
    return f"{phrase(first)} {how} {phrase(second)}"


def _compose(
    category: str, groups: tuple[Group, ...], related: str | None, rng: Rng
) -> str:
    """Say what is there, one of several ways."""
    frame = pick(rng, _FRAMES)
    if related:
        said = _related(*groups, related, rng)
    elif category == "colors" and rng.random() < 0.3:
        said = f"{phrase(groups[0])} that is {groups[0].colour}"
    else:
        parts = [
            phrase(g, coloured=category in ("colors", "color_attr")) for g in groups
        ]
        if rng.random() < 0.5:
            parts.reverse()
        said = (" with " if rng.random() < 0.15 else " and ").join(parts)
    plural = "{be}" in frame and said.split()[0] in NUMBERS
    return frame.format(said, be="are" if plural else "is")


def caption(scene: Scene, rng: Rng) -> str:
    """Return a sentence or noun phrase that is true of the picture."""
    related = relation(*scene.objects) if scene.category == "position" else None
    return _compose(scene.category, scene.groups, related, rng)


def description(scene: Scene) -> str:
    """Name all there is with its number and colour, from left to right.

    Such as "a red apple and two keys"; a group is where its leftmost object is.
    """

    def left(group: Group) -> float:
        kind = group.name, group.colour
        return min(o.box[0] for o in scene.objects if (o.name, o.colour) == kind)

    groups = sorted(scene.groups, key=left)
    return " and ".join(phrase(group, coloured=True) for group in groups)


def questions(scene: Scene, rng: Rng) -> list[Question]:
    """Return questions about a picture with their answers.

    Always one object that is there and one that is not (existence). Then, where the
    picture has them: how many there are (count), the colour of everything whose name
    has one (colour), how two single objects lie (position), and what a single
    object is (naming).
    """
    groups = _by_name(scene)
    asked = _existence(groups, rng)
    if scene.category == "counting" or rng.random() < _ONE_IN_COUNTED:
        asked.append(_count(pick(rng, groups)))
    asked += [_colour(group) for group in groups if group.colour]
    alone = {group.name for group in groups if group.count == 1}
    single = [thing for thing in scene.objects if thing.name in alone]
    for first, second in combinations(single, 2):
        how = relation(first, second)
        if how and rng.random() < 0.5:
            first, second, how = second, first, OPPOSITE[how]
        if how:
            only = len(scene.objects) == 2
            asked.append(_position(first.name, second.name, how, only, rng))
    if len(scene.objects) == 1:
        text = pick(rng, ("What is in the picture?", "What does the picture show?"))
        asked.append(Question("naming", text, scene.objects[0].name))
    return asked


def _by_name(scene: Scene) -> tuple[Group, ...]:
    """Count objects as questions name them; no colour where there are several."""
    colours: dict[str, list[str | None]] = {}
    for thing in scene.objects:
        colours.setdefault(thing.name, []).append(thing.colour)
    return tuple(
        Group(name, found[0] if len(set(found)) == 1 else None, len(found))
        for name, found in colours.items()
    )


def _existence(groups: tuple[Group, ...], rng: Rng) -> list[Question]:
    """One that is there, one that is not, equally often in a random order."""
    present = {group.name for group in groups}
    shown = pick(rng, groups).name
    pool = _ALIKE[OBJECTS[shown].seen, OBJECTS[shown].takes_hue]
    missing = pick(rng, [name for name in pool if name not in present])
    found = []
    for name, answer in ((shown, "yes"), (missing, "no")):
        if rng.random() < 0.5:
            text = f"Is there {article(name)} in the picture?"
        else:
            text = f"Are there any {OBJECTS[name].plural} in the picture?"
        found.append(Question("existence", text, answer))
    return found if rng.random() < 0.5 else found[::-1]


def _count(group: Group) -> Question:
    text = f"How many {OBJECTS[group.name].plural} are there?"
    return Question("count", text, str(group.count))


def _colour(group: Group) -> Question:
    thing = OBJECTS[group.name]
    many = f"are the {thing.plural}" if group.count > 1 else f"is the {thing.name}"
    return Question("colour", f"What colour {many}?", group.colour)


def _position(first: str, second: str, how: str, only: bool, rng: Rng) -> Question:
    """Ask whether `first` is `how` to `second`, or who it is, where it can be one."""
    if only and rng.random() < 0.5:
        return Question("position", f"What is {how} the {second}?", first)
    true = rng.random() < 0.5
    text = f"Is the {first} {how if true else OPPOSITE[how]} the {second}?"
    return Question("position", text, "yes" if true else "no")


def prompts(category: str, split: str, rng: Rng) -> Iterator[dict]:
    """Return endless prompts of one category in the format of GenEval's metadata.

    Each is `{"tag": category, "include": [...], "prompt": str}` with, for every
    group, `{"class", "count"}` and, where the prompt says so, `"color"` and
    `"position": [relation, i]`, i being the entry of "include" it relates to. In
    "counting" there is also `"exclude"`: one more of a class than there should be.

    Raises:
        ValueError: Unknown category or split, or the split has no such category.
    """
    check_category(category, split)  # now, not when the first prompt is asked for
    return _prompts(category, split, rng)


def _prompts(category: str, split: str, rng: Rng) -> Iterator[dict]:
    while True:
        plan = draw_plan(category, split, rng)
        include = []
        for group in plan.groups:
            entry = {"class": group.name, "count": group.count}
            if category in ("colors", "color_attr"):
                entry["color"] = group.colour
            include.append(entry)
        if plan.relation:
            include.reverse()
            include[1]["position"] = [plan.relation, 0]
        wanted = {"tag": category, "include": include}
        if category == "counting":
            wanted["exclude"] = [{**e, "count": e["count"] + 1} for e in include]
        yield {
            **wanted,
            "prompt": _compose(category, plan.groups, plan.relation, rng),
        }
