"""A detector of the small world in training: a task for the loop.

Pictures are drawn as they are needed, with their truth, from every split, so that the
judge knows what a generator may be asked for. Some are blurred and some have noise, as
pictures from a tokenizer do. What it learns is `evaluation.detector`.
Source: ours; the loss of centres is CornerNet's focal loss, arXiv:1808.01244, as
CenterNet takes it.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow.data.scenes import COLOURS, OBJECTS, SPLITS, Scene, Scenes
from tokenflow.evaluation import geneval
from tokenflow.evaluation.detector import CELL, Detector
from tokenflow.tokenizer.processing import from_uint8
from tokenflow.training.log import Log
from tokenflow.training.loop import train
from tokenflow.training.optimizers import OptimizerConfig
from tokenflow.training.parallel import whole_state
from tokenflow.training.run import RunConfig
from tokenflow.training.task import Batch, Moment, Task
from tokenflow.training.world import World

SPREAD = 0.7  # of the hill around a centre, in cells
COLOUR_WEIGHT, EDGE_WEIGHT = 1.0, 5.0


@dataclass(frozen=True)
class DetectorConfig:
    """What a detector is made of, what it sees, and by how much it is judged.

    Args:
        width: Channels, see `evaluation.detector.Detector`.
        blocks: Residual blocks of its deepest level.
        image_size: Side of the pictures, a multiple of 8.
        splits: Of the pictures, in turn; "heldout" is what it is judged by.
        worn: Share of the pictures that are blurred or have noise.
        heldout: Pictures of each category that it is judged by.

    Raises:
        ValueError: A value is out of its range.
    """

    width: int = 64
    blocks: int = 4
    image_size: int = 64
    splits: tuple[str, ...] = ("train", "train", "combinations", "objects")
    worn: float = 0.3
    heldout: int = 100

    def __post_init__(self) -> None:  # noqa: D105
        if self.image_size % (2 * CELL) or self.image_size < 32:
            raise ValueError(
                f"train: model.image_size must be a multiple of {2 * CELL}, at least "
                f"32, got {self.image_size}"
            )
        known = [split for split in SPLITS if split != "heldout"]
        if not self.splits or not set(self.splits) <= set(known):
            raise ValueError(
                f"train: model.splits must be of {known}, got {list(self.splits)}"
            )
        if not 0 <= self.worn <= 1:
            raise ValueError(f"train: model.worn must be in [0, 1], got {self.worn}")
        if self.heldout < 1:
            raise ValueError(
                f"train: model.heldout must be at least 1, got {self.heldout}"
            )


@dataclass(frozen=True)
class DetectorRecipe:
    """All that defines a detector's training.

    Args:
        model: What it is made of and sees.
        optimizer: Of all of it.
        run: For how long, in what steps.
    """

    task: ClassVar[str] = "detector"

    model: DetectorConfig = field(default_factory=DetectorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)


class DetectorTask(Task):
    """A detector in training; see `task.Task` for the methods.

    Args:
        recipe: All that defines it.
        world: This process among the others.
    """

    def __init__(self, recipe: DetectorRecipe, world: World) -> None:
        self.recipe, self.world = recipe, world
        config, seed = recipe.model, recipe.run.seed
        self.sources = [
            Scenes(split, size=config.image_size, seed=seed + place)
            for place, split in enumerate(config.splits)
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = Detector(
                tuple(OBJECTS), tuple(COLOURS), config.width, config.blocks
            )
        self.model.to(world.device).train()
        self.heldout = geneval.true_pictures(config.heldout, config.image_size)
        self.parts: dict[str, nn.Module] = {"model": self.model}
        self.optimizers = {"model": recipe.optimizer}

    def sample(self, number: int) -> tuple[Tensor, Scene]:
        """Return picture `number` of the run, uint8 [3, R, R], and its truth."""
        index, place = divmod(number, len(self.sources))
        drawn = self.sources[place].draw(index)
        rng = random.Random(f"{self.recipe.run.seed}/worn/{number}")
        if rng.random() < self.recipe.model.worn:
            return worn(drawn.image, rng), drawn.scene
        return drawn.image, drawn.scene

    def batches(self, start: int, world: World) -> Iterator[Batch]:
        """Yield this process's share of each step's pictures and their targets."""
        batch, step = self.recipe.run.batch, start
        share, grid = batch // world.size, self.recipe.model.image_size // CELL
        while True:
            first = step * batch + world.rank * share
            samples = [self.sample(first + i) for i in range(share)]
            images = torch.stack([image for image, _ in samples])
            yield {"image": images, **targets([scene for _, scene in samples], grid)}
            step += 1

    def loss(
        self, part: str, call: nn.Module, batch: Batch, moment: Moment
    ) -> dict[str, Tensor]:
        """Return how wrong centres, colours and edges are, and their sum as "loss"."""
        terms = losses(call(from_uint8(batch["image"])), batch)
        whole = terms["centres"] + COLOUR_WEIGHT * terms["colours"]
        return {"loss": whole + EDGE_WEIGHT * terms["edges"], **terms}

    def judge(self, log: Log | None, moment: Moment) -> dict[str, float]:
        """Return the share of held-out pictures that it is right about.

        Each category's, their "mean", and "spoilt", the mean for prompts that are just
        not true of the pictures.
        """
        self.model.eval()
        found = geneval.check_detector(self.model, self.heldout)
        self.model.train()
        return {**found["true"], "spoilt": found["spoilt"]["mean"]}

    def finish(self, folder: Path, world: World) -> None:
        """Write RUN/model in float16, as `Detector.from_pretrained` reads it."""
        weights = whole_state(self.model)
        if world.first:
            half = {name: value.half() for name, value in weights.items()}
            self.model.save_pretrained(folder / "model", half)
        world.wait()


def train_detector(recipe: DetectorRecipe, folder: Path, **how: Any) -> dict[str, Any]:
    """Train a detector of the small world and write it to `folder`/model.

    Arguments, result and errors are those of `loop.train`.
    """

    def make(recipe: DetectorRecipe, world: World, say: object) -> DetectorTask:
        return DetectorTask(recipe, world)  # has nothing to say

    return train(make, recipe, folder, **how)


def worn(image: Tensor, rng: random.Random) -> Tensor:
    """Return a picture made smaller and large again, with some noise, uint8."""
    side = image.shape[-1]
    small = rng.randint(side // 2, side)
    x = image[None].float()
    x = F.interpolate(x, (small, small), mode="bilinear", antialias=True)
    x = F.interpolate(x, (side, side), mode="bicubic")
    noise = torch.Generator().manual_seed(rng.getrandbits(60))
    x = x + rng.uniform(0, 8) * torch.randn(x.shape, generator=noise)
    return x[0].round().clamp(0, 255).byte()


def targets(scenes: Sequence[Scene], grid: int) -> dict[str, Tensor]:
    """Return what a detector is to say of pictures.

    Args:
        scenes: Their truths.
        grid: Cells G along a side.

    Returns:
        "hills" [B, names, G, G] float32, 1 at the cell of a centre and falling around
        it; "colour" [B, G, G] int64, the last number for none, −1 where no centre is;
        "edges" [B, 4, G, G] float32, what `Detector.forward` calls distances. Where two
        centres share a cell, colour and edges are the upper object's.
    """
    names, colours = list(OBJECTS), list(COLOURS)
    hills = torch.zeros(len(scenes), len(names), grid, grid)
    colour = torch.full((len(scenes), grid, grid), -1)
    edges = torch.zeros(len(scenes), 4, grid, grid)
    cells = torch.arange(grid)
    for b, scene in enumerate(scenes):
        for thing in scene.objects:
            left, top, right, bottom = thing.box
            x = min(grid - 1, int((left + right) / 2 * grid))
            y = min(grid - 1, int((top + bottom) / 2 * grid))
            far = (cells[:, None] - y) ** 2 + (cells - x) ** 2
            hill = torch.exp(-far / (2 * SPREAD**2))
            mine = hills[b, names.index(thing.name)]
            mine.copy_(torch.maximum(mine, hill))
            own = len(colours)
            colour[b, y, x] = colours.index(thing.colour) if thing.colour else own
            u, v = (x + 0.5) / grid, (y + 0.5) / grid
            edges[b, :, y, x] = torch.tensor([u - left, v - top, right - u, bottom - v])
    return {"hills": hills, "colour": colour, "edges": edges}


def losses(found: tuple[Tensor, Tensor, Tensor], wanted: Batch) -> dict[str, Tensor]:
    """Return the loss of centres, of colours and of edges, each a mean over objects.

    Args:
        found: As `Detector.forward` returns it.
        wanted: As of `targets`.
    """
    logits, hues, edges = (part.float() for part in found)
    hills, centre = wanted["hills"], wanted["colour"] >= 0
    peak = hills == 1
    log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
    chance = logits.sigmoid()
    near = (1 - chance) ** 2 * log_yes
    far = (1 - hills) ** 4 * chance**2 * log_no
    centres = -torch.where(peak, near, far).sum() / peak.sum().clamp(min=1)
    off = (edges - wanted["edges"]).abs().mean(1)
    return {
        "centres": centres,
        "colours": F.cross_entropy(hues, wanted["colour"], ignore_index=-1),
        "edges": off[centre].mean(),
    }
