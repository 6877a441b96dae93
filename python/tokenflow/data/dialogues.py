"""Questions about drawn scenes as conversations, like those of `llava`.

Each question is a conversation of its own, as it is to be answered: a question that was
asked before would say what is in the picture. To learn from, those about one picture
come together, in an order of their own, so that it is read once for several answers;
one more asks for all there is, as LLaVA's data does, which teaches names faster.
Source: ours.
"""

import random
from pathlib import Path
from typing import Any, Protocol

from tokenflow.data.llava import IMAGE, Llava
from tokenflow.data.scenes import Scenes, description

SCENES = "scenes"
DESCRIBE = "Describe the picture."


class Dialogues(Protocol):
    """Conversations by number; see `llava.Llava`."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one, "turns" and "images"; or several "talks" about the same."""

    def size(self, index: int) -> tuple[int, int]:
        """Return how many characters and pictures one has, roughly."""


class SceneDialogues:
    """All questions about each picture of the small world, and its description.

    Item i is {"talks", "images": [uint8 [3, size, size]]}: conversations, each a list
    of turns like those of `llava.Llava`, and the picture that they are about.

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

    def talks(self, index: int) -> list[list[dict[str, str]]]:
        """Return what is asked and said about a picture, without drawing it."""
        asked = self.scenes.questions(index)
        random.Random(f"{self.scenes.split}/{self.scenes.seed}/{index}").shuffle(asked)
        said = description(self.scenes.truth(index))
        told = [*((q.question, q.answer) for q in asked), (DESCRIBE, said)]
        return [_turns(*words) for words in told]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the conversations about one picture."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        return {
            "talks": self.talks(index),
            "images": [self.scenes.draw(index).image],
        }


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"{IMAGE}\n{question}"},
        {"role": "assistant", "content": answer},
    ]


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
            "turns": _turns(asked.question, asked.answer),
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
