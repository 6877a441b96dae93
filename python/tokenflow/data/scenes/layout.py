"""Where the objects go: drawn again until all is to be seen and the relation holds.

Sizes and places are whole cells of `sprites.CELLS` to the side. Objects are put down
one after another, each where those below keep at least VISIBLE of their pixels. Who
is seen where is kept as one map of the cells, so the visible shares are exact there.
"""

import numpy as np

from tokenflow.data.scenes.plans import Plan, Rng, pick
from tokenflow.data.scenes.sprites import CELLS, Sprites
from tokenflow.data.scenes.truth import OPPOSITE, Scene, SceneObject, relation

VISIBLE = 0.75  # least share of an object that later ones leave to be seen
_TRIES = 20  # places tried for one object before all are put down anew
_SIDES = {  # longer side in cells, by the number of objects
    1: (27, 30, 34, 38, 43, 48, 54, 60),
    2: (22, 24, 27, 30, 34, 38),
    3: (20, 22, 24, 27, 30),
    4: (18, 20, 22, 24, 27),
    5: (18, 20, 22, 24),
}
_SIDES_RELATED = (20, 22, 24, 27, 30)  # leaves room between two


class _Pile:
    """Objects put down so far: which of them each cell shows."""

    def __init__(self):
        self.owner = np.full((CELLS, CELLS), -1, np.int8)
        self.full: list[int] = []  # cells of each object's mask
        self.seen: list[int] = []  # cells of it that are still to be seen

    def add(self, mask: np.ndarray, left: int, top: int) -> bool:
        """Put an object on top, unless one below would be hidden too much."""
        height, width = mask.shape
        region = self.owner[top : top + height, left : left + width]
        below = region[mask]
        hidden = np.bincount(below[below >= 0], minlength=len(self.full)).tolist()
        left_over = [seen - lost for seen, lost in zip(self.seen, hidden, strict=True)]
        full = self.full
        if any(s < VISIBLE * f for s, f in zip(left_over, full, strict=True)):
            return False
        region[mask] = len(full)
        area = below.size
        self.full, self.seen = [*full, area], [*left_over, area]
        return True


def arrange(plan: Plan, sprites: Sprites, rng: Rng) -> Scene:
    """Give every object of a plan a size and a place."""
    things = [g for group in plan.groups for g in [group] * group.count]
    while True:
        if plan.relation is None:
            objects = _pile(things, sprites, rng)
        else:
            objects = _related(things, plan.relation, sprites, rng)
        if objects:
            return Scene(plan.category, objects)


def _object(thing, cells, place, visible: float, mirrored: bool) -> SceneObject:
    (width, height), (left, top) = cells, place
    corners = (left, top, left + width, top + height)
    box = tuple(corner / CELLS for corner in corners)
    return SceneObject(thing.name, thing.colour, box, visible, mirrored)


def _place(cells: tuple[int, int], rng: Rng) -> tuple[int, int]:
    return tuple(int(rng.random() * (CELLS - side + 1)) for side in cells)


def _pile(things, sprites: Sprites, rng: Rng) -> tuple[SceneObject, ...] | None:
    """Put objects anywhere; None if one of them found no place."""
    pile, placed = _Pile(), []
    for thing in things:
        side, mirrored = pick(rng, _SIDES[len(things)]), rng.random() < 0.5
        cells = sprites.cells(thing.name, side)
        mask = sprites.mask(thing.name, side, mirrored)
        for _ in range(_TRIES):
            place = _place(cells, rng)
            if pile.add(mask, *place):
                break
        else:
            return None
        placed.append((thing, cells, place, mirrored))
    shares = [s / f for s, f in zip(pile.seen, pile.full, strict=True)]
    return tuple(
        _object(thing, cells, place, share, mirrored)
        for (thing, cells, place, mirrored), share in zip(placed, shares, strict=True)
    )


def _related(things, wanted: str, sprites: Sprites, rng: Rng):
    """Put two objects apart from each other; None if the relation does not hold."""
    sides = [pick(rng, _SIDES_RELATED) for _ in things]
    sizes = [sprites.cells(t.name, s) for t, s in zip(things, sides, strict=True)]
    mirrored = [rng.random() < 0.5 for _ in things]

    def objects(places):
        return tuple(map(_object, things, sizes, places, (1.0, 1.0), mirrored))

    for _ in range(_TRIES):
        places = [_place(cells, rng) for cells in sizes]
        found = objects(places)
        if relation(*found) == OPPOSITE[wanted]:
            places = [
                (CELLS - w - x, CELLS - h - y)
                for (w, h), (x, y) in zip(sizes, places, strict=True)
            ]
            found = objects(places)
        if relation(*found) == wanted:
            return found
    return None
