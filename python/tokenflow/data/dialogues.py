"""Questions about drawn scenes as conversations, like those of `llava`.

In training a conversation holds all questions about a picture, in an order of its own,
so that a picture is read once for several answers. To judge by, each question stands
alone: no other question may help it.
Source: ours.
"""

import random
from pathlib import Path
from typing import Any, Protocol

from tokenflow.data.llava import IMAGE, Llava
from tokenflow.data.scenes import Scenes

SCENES = "scenes"


class Dialogues(Protocol):
    """Conversations by number; see `llava.Llava`."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one: "turns" and "images"."""

    def size(self, index: int) -> tuple[int, int]:
        """Return how many characters and pictures one has, roughly."""


class SceneDialogues:
    """All questions about each picture of the small world.

    Item i is {"turns", "images": [uint8 [3, size, size]]}, see `Scenes` for the rest.

    Args:
        split, size, seed, length: As of `Scenes`.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        size: int = 64,
        seed: int = 0,
        length: int = 100_000,
    ):
        self.scenes = Scenes(split, size=size, seed=seed, length=length)

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self.scenes)

    def size(self, index: int) -> tuple[int, int]:
        """Return the same for all: they are too alike to be worth sorting."""
        return 0, 1

    def turns(self, index: int) -> list[dict[str, str]]:
        """Return what is asked and answered about a picture, without drawing it."""
        asked = self.scenes.questions(index)
        random.Random(f"{self.scenes.split}/{self.scenes.seed}/{index}").shuffle(asked)
        turns = []
        for place, question in enumerate(asked):
            mark = "" if place else f"{IMAGE}\n"
            turns.append({"role": "user", "content": mark + question.question})
            turns.append({"role": "assistant", "content": question.answer})
        return turns

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one conversation with its picture."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        return {
            "turns": self.turns(index),
            "images": [self.scenes.draw(index).image],
        }


class SceneQuestions:
    """Single questions about the pictures of the small world.

    Item i is {"turns", "images", "kind", "question", "answer"}. Questions are those of
    pictures 0, 1, … in order.

    Args:
        count: How many questions.
        split, size, seed: As of `Scenes`.
    """

    def __init__(
        self, count: int, split: str = "heldout", *, size: int = 64, seed: int = 0
    ):
        self.scenes = Scenes(split, size=size, seed=seed, length=1 << 32)
        self.asked: list[tuple[int, Any]] = []
        index = 0
        while len(self.asked) < count:
            self.asked += [(index, asked) for asked in self.scenes.questions(index)]
            index += 1
        del self.asked[count:]

    def __len__(self) -> int:
        """Return how many questions there are."""
        return len(self.asked)

    def size(self, index: int) -> tuple[int, int]:
        """Return the same for all."""
        return 0, 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one question with its picture and answer."""
        number, asked = self.asked[index]
        return {
            "turns": [
                {"role": "user", "content": f"{IMAGE}\n{asked.question}"},
                {"role": "assistant", "content": asked.answer},
            ],
            "images": [self.scenes.draw(number).image],
            "kind": asked.kind,
            "question": asked.question,
            "answer": asked.answer,
        }


def open_dialogues(name: str, pictures: str | Path = "", **drawn: Any) -> Dialogues:
    """Return the conversations of a name: "scenes", or a file in LLaVA's format.

    Args:
        name: One of these.
        pictures: Folder of a file's pictures; where the file is, when empty.
        drawn: Arguments of `SceneDialogues`.
    """
    if name == SCENES:
        return SceneDialogues(**drawn)
    return Llava(name, pictures or None)
