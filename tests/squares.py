"""A tiny world with captions, for tests of the teacher.

A square of one of three colours in one of the four quarters of a grey picture, or two
squares, and a caption that says so.
"""

import random

import torch

from tokenflow.training.optimizers import OptimizerConfig
from tokenflow.training.pictures import DataConfig
from tokenflow.training.run import RunConfig
from tokenflow.training.task import Moment
from tokenflow.training.teacher import TeacherConfig, TeacherRecipe, TeacherTask
from tokenflow.training.world import World

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230)}
PLACES = {
    "top left": (0, 0),
    "top right": (0, 1),
    "bottom left": (1, 0),
    "bottom right": (1, 1),
}
TINY = TeacherConfig(
    encoder={"kind": "clip", "width": 32, "layers": 2, "heads": 2, "patch": 4}
    | {"image_size": 16},
    image_size=16,
    width=32,
    text={"width": 32, "layers": 1, "heads": 2, "length": 16},
    vocabulary=300,
    captions=100,
    pieces=6,
)


def sample(number):
    """One or two squares; a pure function of the number."""
    rng = random.Random(number)
    image = torch.full((3, 16, 16), 110, dtype=torch.uint8)
    image += torch.randint(0, 30, (3, 16, 16), generator=torch.manual_seed(number))
    image = image.to(torch.uint8)
    names = []
    for place in rng.sample(sorted(PLACES), rng.choice([1, 2])):
        colour = rng.choice(sorted(COLOURS))
        row, column = (8 * half + 2 for half in PLACES[place])
        block = image[:, row : row + 4, column : column + 4]
        block.copy_(torch.tensor(COLOURS[colour])[:, None, None].expand(3, 4, 4))
        names.append(f"{colour} square at the {place}")
    return {"image": image, "caption": "a " + " and a ".join(names)}


def batch_of(numbers):
    samples = [sample(n) for n in numbers]
    return {
        "image": torch.stack([s["image"] for s in samples]),
        "caption": [s["caption"] for s in samples],
    }


class Squares:
    """A source of samples from one number on."""

    def __init__(self, first):
        self.first = first

    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        return sample(self.first + index)


def recipe(model=TINY, heldout=64, **run):
    run = {"batch": 32, "steps": 4, "tensorboard": False, "average": 0.0} | run
    return TeacherRecipe(
        model=model,
        data=DataConfig(heldout_pictures=heldout),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, warmup=10),
        run=RunConfig(**run),
    )


def task(model=TINY, heldout=64, world=None):
    return TeacherTask(recipe(model, heldout), world or World())


def moment(step=0, world=None):
    return Moment(step, 0.0, 0, world or World())


def terms_of(made, numbers, where=None):
    return made.loss("model", made.model, batch_of(numbers), where or moment())
