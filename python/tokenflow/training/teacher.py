"""A teacher of one's own, from pictures with captions: a task for the loop.

For those without CLIP or SigLIP at hand, or with pictures that neither knows. The
model is `tokenizer.contrastive`, what it learns from is `training.contrastive`, and
what it then says of each patch is what a tokenizer's semantic half learns to rebuild.
Source: ours; as a target it takes CLIP's place in TokenFlow, arXiv:2412.03069.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenflow.config import TokenFlowConfig
from tokenflow.data.errors import BrokenPicture
from tokenflow.data.stream import Source, Stream
from tokenflow.tokenizer.byte_pairs import BYTES
from tokenflow.tokenizer.contrastive import (
    SPECIAL,
    ImageTextModel,
    Vocabulary,
)
from tokenflow.tokenizer.processing import from_uint8
from tokenflow.training.contrastive import (
    BITS,
    dense_logits,
    dense_loss,
    everywhere,
    first_of_each,
    read_texts,
    row_mean,
    sigmoid_loss,
)
from tokenflow.training.log import Log
from tokenflow.training.loop import train
from tokenflow.training.optimizers import OptimizerConfig
from tokenflow.training.parallel import as_forward, whole_state
from tokenflow.training.pictures import DataConfig, open_pictures, picture_batches
from tokenflow.training.run import RunConfig
from tokenflow.training.task import Batch, Moment, Task
from tokenflow.training.tokenizer import outer_blocks
from tokenflow.training.world import World

JUDGED = 64  # held-out pictures at a time


@dataclass(frozen=True)
class TeacherConfig:
    """What a teacher is made of and how it learns.

    Args:
        encoder: `kind` ("clip", "siglip", "vitamin") and sizes of the picture encoder.
        image_size: Side of the pictures.
        width: Width of the space that pictures and texts share, and of what the
            teacher says of a patch.
        text: Arguments of the text encoder: width, layers, heads, length.
        vocabulary: Most tokens of the vocabulary.
        captions: From how many captions it is learned.
        dense: Weight of the second term, above 0.
        pieces: Pieces of each caption that enter the second term in a step.

    Raises:
        ValueError: A value is out of its range.
    """

    encoder: dict[str, Any] = field(
        default_factory=lambda: TokenFlowConfig.preset("mini").semantic_encoder
    )
    image_size: int = 64
    width: int = 96
    text: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 1024
    captions: int = 5000
    dense: float = 1.0
    pieces: int = 8

    def __post_init__(self) -> None:  # noqa: D105
        if not self.dense > 0:
            raise ValueError(f"train: model.dense must be above 0, got {self.dense}")
        low = {"image_size": 1, "width": 1, "captions": 1, "pieces": 1}
        low["vocabulary"] = BYTES + len(SPECIAL)
        for name, least in low.items():
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"train: model.{name} must be at least {least}, got "
                    f"{getattr(self, name)}"
                )
        if self.vocabulary >= 1 << BITS:
            raise ValueError(
                f"train: model.vocabulary must be below {1 << BITS}, got "
                f"{self.vocabulary}"
            )


@dataclass(frozen=True)
class TeacherRecipe:
    """All that defines a teacher's training.

    Args:
        model: What it is made of, and its terms.
        data: Pictures with captions.
        optimizer: Of all of it.
        run: For how long, in what steps.
    """

    task: ClassVar[str] = "teacher"

    model: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)


class TeacherTask(Task):
    """A teacher in training; see `Task` for the methods.

    Args:
        recipe: All that defines it.
        world: This process among the others.
        say: Takes a line for people.

    Raises:
        ValueError: The pictures have no captions, or the sizes do not fit.
    """

    def __init__(
        self,
        recipe: TeacherRecipe,
        world: World,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.recipe, self.world = recipe, world
        config, data = recipe.model, recipe.data
        self.source, heldout = open_pictures(data, config.image_size, recipe.run.seed)
        vocabulary = Vocabulary.learn(
            captions_of(self.source, config.captions, data.source), config.vocabulary
        )
        say(f"vocabulary: {len(vocabulary)} tokens")
        count = min(data.heldout_pictures, len(heldout))
        judged = Stream(heldout, size=config.image_size, batch=count, flip=False)
        self.heldout = judged.read(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.run.seed)
            self.model = ImageTextModel(
                config.encoder, vocabulary, config.image_size, config.width, config.text
            )
        self.model.to(world.device).train()
        self.parts: dict[str, nn.Module] = {"model": self.model}
        self.optimizers = {"model": recipe.optimizer}

    def whole(self, part: str) -> tuple[nn.Parameter, ...]:
        """Return the temperatures and biases, which are single numbers."""
        model = self.model
        return model.scale, model.bias, model.patch_scale, model.patch_bias

    def blocks(self, part: str) -> tuple[nn.Module, ...]:
        """Return the transformer layers."""
        return outer_blocks(self.model)

    def batches(self, start: int, world: World) -> Iterator[Batch]:
        """Yield this process's share of each step's pictures and captions."""
        recipe, size = self.recipe, self.recipe.model.image_size
        return picture_batches(self.source, recipe.data, recipe.run, size, start, world)

    def loss(
        self, part: str, call: nn.Module, batch: Batch, moment: Moment
    ) -> dict[str, Tensor]:
        """Return both terms and their weighted sum as "loss"."""
        model, world, config = self.model, moment.world, self.recipe.model
        images = from_uint8(batch["image"])
        texts = read_texts(
            batch["caption"],
            model.vocabulary,
            model.text_encoder.length,
            config.pieces,
            lambda caption: moment.rng("pieces", caption),
        ).to(images.device)
        once, where = first_of_each(texts.keys)
        pictures, patches, captions, pieces = call(
            images, texts.captions, texts.pieces[once]
        )
        captions, keys = everywhere(captions, texts.caption_keys, world)
        whole = sigmoid_loss(
            pictures,
            captions,
            texts.caption_keys[:, None] == keys,
            model.scale,
            model.bias,
        )
        pieces, keys = everywhere(pieces[where], texts.keys, world)
        dense = dense_loss(
            patches,
            pieces,
            (texts.all_keys[:, None] == keys[:, None]).any(2),
            model.patch_scale,
            model.patch_bias,
        )
        return {"loss": whole + config.dense * dense, "captions": whole, "dense": dense}

    def after_step(
        self, optimizers: dict[str, torch.optim.Optimizer], moment: Moment
    ) -> dict[str, float]:
        """Return the temperatures."""
        model = self.model
        return {
            "temperature": model.scale.exp().item(),
            "dense_temperature": model.patch_scale.exp().item(),
        }

    @torch.no_grad()
    def judge(self, log: Log, moment: Moment) -> dict[str, float]:
        """Look at the held-out pictures, every process at all of them.

        Returns:
            "retrieval": the share of pictures whose own caption is the most similar
            one of all; "pieces": how well patches tell which pieces belong to a
            picture, the mean of the shares that are right among those that do and
            among those that do not (0.5 is chance).
        """
        model = self.model.eval()
        captions = self.heldout["caption"]
        known = sorted(set(captions))
        vectors = as_forward(model, "encode_texts", known)
        texts = read_texts(
            captions, model.vocabulary, model.text_encoder.length, 4, random.Random
        ).to(vectors.device)
        once, _ = first_of_each(texts.keys)
        once = once[texts.keys[once] != 0]
        keys = texts.keys[once]
        pieces = as_forward(model, "encode_tokens", texts.pieces[once])
        found, right, wrong = 0, [], []
        for start in range(0, len(captions), JUDGED):
            here = slice(start, start + JUDGED)
            images = from_uint8(self.heldout["image"][here].to(vectors.device))
            pictures, patches = as_forward(model, "encode_images", images)
            best = (pictures @ vectors.T).argmax(1).tolist()
            found += sum(
                known[i] == caption
                for i, caption in zip(best, captions[here], strict=True)
            )
            logits = dense_logits(patches, pieces, model.patch_scale, model.patch_bias)
            belongs = (texts.all_keys[here, None] == keys[:, None]).any(2)
            right.append(row_mean((logits > 0).float(), belongs))
            wrong.append(row_mean((logits <= 0).float(), ~belongs))
        model.train()
        share = (torch.cat(right).mean() + torch.cat(wrong).mean()) / 2
        return {"retrieval": found / len(captions), "pieces": share.item()}

    def finish(self, folder: Path, world: World) -> None:
        """Write RUN/model in float16, as `load_teacher` reads it."""
        weights = {
            name: value.half() if value.is_floating_point() else value
            for name, value in whole_state(self.model).items()
        }
        if world.first:
            self.model.save_pretrained(folder / "model", weights)
        world.wait()


def train_teacher(recipe: TeacherRecipe, folder: Path, **how: Any) -> dict[str, Any]:
    """Train a teacher on pictures with captions and write it to `folder`/model.

    Arguments, result and errors are those of `loop.train`.
    """
    return train(TeacherTask, recipe, folder, **how)


def captions_of(source: Source, count: int, name: str) -> Iterator[str]:
    """Yield `count` captions from all over a source; broken pictures are passed over.

    Raises:
        ValueError: A sample has none.
    """
    count = min(count, len(source))
    for i in range(count):
        try:
            sample = source[i * len(source) // count]
        except BrokenPicture:
            continue
        if "caption" not in sample:
            raise ValueError(
                f"train: data.source must have captions, {name} has none (its samples "
                f"have {sorted(sample)})"
            )
        yield sample["caption"]
