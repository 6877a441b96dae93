"""A small world: pictures of named objects whose whole truth is known.

One to five objects out of sixty, in six colours and four relations, with captions in
the six categories of GenEval and questions with answers. Everything is drawn by our
own code from the glyphs of an installed emoji font; picture number i of a split and
seed is always the same. What training never shows is fixed by name: see `objects`.

`objects` has the vocabulary, `plans` chooses what meets, `layout` finds the places,
`truth` keeps them, `sprites` and `dataset` draw, `words` speaks.
Source: ours. Font: Noto Color Emoji (SIL Open Font License 1.1).
"""

from tokenflow.data.scenes.dataset import Drawing, Scenes, render
from tokenflow.data.scenes.objects import (
    COLOURS,
    HELDOUT_COLOURS,
    HELDOUT_PAIRS,
    OBJECTS,
    SEEN,
    UNSEEN,
    heldout_colour,
    heldout_pair,
)
from tokenflow.data.scenes.plans import MIXTURE, SPLITS
from tokenflow.data.scenes.truth import (
    CATEGORIES,
    RELATIONS,
    Group,
    Scene,
    SceneObject,
    relation,
)
from tokenflow.data.scenes.words import (
    QUESTION_KINDS,
    Question,
    caption,
    description,
    prompts,
    questions,
)

__all__ = [
    "CATEGORIES",
    "COLOURS",
    "HELDOUT_COLOURS",
    "HELDOUT_PAIRS",
    "MIXTURE",
    "OBJECTS",
    "QUESTION_KINDS",
    "RELATIONS",
    "SEEN",
    "SPLITS",
    "UNSEEN",
    "Drawing",
    "Group",
    "Question",
    "Scene",
    "SceneObject",
    "Scenes",
    "caption",
    "description",
    "heldout_colour",
    "heldout_pair",
    "prompts",
    "questions",
    "relation",
    "render",
]
