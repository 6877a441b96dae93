"""A unified model in training: captions to paint and conversations to answer.

Every step has captioned pictures, as a generation model's, and conversations about
others, as an understanding model's; one forward reads both, and the loss is the
painting's plus the weighted answering's. Every learned word of a step counts alike,
however it is split over processes and micro batches.
Source: the two trainings of TokenFlow, arXiv:2412.03069, which this joins.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow.generation.model import TokenFlowForGeneration
from tokenflow.training.dialogues import (
    WORDS,
    DialogueConfig,
    DialogueStream,
    Writer,
    judged,
    open_sources,
    spoken,
)
from tokenflow.training.generation import GenerationRecipe, GenerationTask
from tokenflow.training.log import Log
from tokenflow.training.loop import train
from tokenflow.training.painter import begin
from tokenflow.training.task import Batch, Moment
from tokenflow.training.words import MARKS
from tokenflow.training.world import World
from tokenflow.understanding.prompts import IGNORED, IMAGE
from tokenflow.unified.model import TokenFlowUnified


@dataclass(frozen=True)
class AnswersConfig:
    """How much of a step is answering.

    Args:
        batch: Conversations per step, over all processes and micro batches, beside the
            `run.batch` captions.
        weight: Of their loss, beside the painting's 1.
        length: Positions of a conversation at most.

    Raises:
        ValueError: A value is out of its range.
    """

    batch: int = 16
    weight: float = 1.0
    length: int = 2048

    def __post_init__(self) -> None:  # noqa: D105
        for name, least in (("batch", 1), ("weight", 0), ("length", 2)):
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"train: answers.{name} must be at least {least}, "
                    f"got {getattr(self, name)}"
                )


@dataclass(frozen=True)
class UnifiedRecipe(GenerationRecipe):
    """All that defines a unified model's training.

    Args:
        preset: One of `generation.config.PRESETS`.
        model: Fields of `TokenFlowUnifiedConfig` that differ from the preset's;
            scales, codebook_size and code_width are the tokenizer's.
        tokenizer: The frozen image tokenizer: a shipped name, a folder or a hub id.
        init: A unified model to begin with, a folder or a hub id; empty for none.
        words: How captions are read; a vocabulary is learned from conversations too.
        data: Pictures with captions; or a folder of their tokens, see `tokens`.
        near: What is made of entries being near each other.
        drawn: What is drawn to be looked at.
        painter: A generation model to begin with, see `painter.begin`: a shipped name,
            a folder or a hub id; empty for none.
        dialogues: Conversations about pictures.
        answers: How much of a step they are.
        optimizer: Of all of it.
        run: For how long, in what steps.

    Raises:
        ValueError: There is no such preset, there are two models to begin with, or
            near.head is set and there is one.
    """

    task: ClassVar[str] = "unified"

    painter: str = ""
    dialogues: DialogueConfig = field(default_factory=DialogueConfig)
    answers: AnswersConfig = field(default_factory=AnswersConfig)

    def __post_init__(self) -> None:  # noqa: D105
        super().__post_init__()
        if self.painter and self.init:
            raise ValueError(
                "train: painter must be empty where init is given, got "
                f"{self.painter!r} and {self.init!r}"
            )
        if self.painter and self.near.head:
            raise ValueError(
                f"train: near.head must be 0 where painter is given, got "
                f"{self.near.head}"
            )


class UnifiedTask(GenerationTask):
    """A unified model in training; see `task.Task` for the methods.

    Args:
        recipe: All that defines it.
        world: This process among the others.
        say: Takes a line for people.

    Raises:
        ValueError: The pictures have no captions, or the sizes do not fit.
        OSError: There is no such tokenizer or painter, or there are no such
            conversations.
    """

    kind = TokenFlowUnified
    marks = (*MARKS, "<|im_start|>", "<|im_end|>", IMAGE)
    recipe: UnifiedRecipe
    model: TokenFlowUnified

    def __init__(
        self,
        recipe: UnifiedRecipe,
        world: World,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        share = world.size * recipe.run.accumulate
        if recipe.answers.batch % share:
            raise ValueError(
                f"train: answers.batch must be a multiple of {share}, the processes "
                f"times run.accumulate, got {recipe.answers.batch}"
            )
        super().__init__(recipe, world, say)
        found = open_sources(recipe.dialogues, self.size, recipe.run.seed)
        self.talks, self.questions = found
        self.writer = Writer(self.model.processor, recipe.answers.length)
        self._learned = torch.ones((), device=world.device)

    def begin(self, model: TokenFlowForGeneration, say: Callable[[str], None]) -> None:
        """Give a model what the painter has learned, if there is one."""
        if name := self.recipe.painter:
            tokenizer = model.image_tokenizer
            painter = TokenFlowForGeneration.from_pretrained(
                name, image_tokenizer=tokenizer
            )
            say(f"tokens known to the painter: {begin(model, painter)}")

    def texts(self) -> Iterator[str]:
        """Yield captions and conversations, to learn a vocabulary from."""
        yield from super().texts()
        recipe = self.recipe
        template = recipe.model.get("template", TokenFlowUnified.config_class.template)
        yield from spoken(recipe.dialogues, template, recipe.run.seed)

    def batches(self, start: int, world: World) -> Iterator[Batch]:
        """Yield this process's share of each step's captions and conversations."""
        recipe = self.recipe
        talks = DialogueStream(
            self.talks,
            self.writer,
            batch=recipe.answers.batch,
            group=recipe.dialogues.group,
            seed=recipe.run.seed,
            start=start,
            rank=world.rank,
            world=world.size,
            workers=recipe.dialogues.workers,
        )
        for shown, said in zip(super().batches(start, world), talks, strict=True):
            yield {**shown, **said, "broken": shown["broken"] + said["broken"]}

    def before_step(
        self, batch: Batch, optimizers: dict[str, torch.optim.Optimizer], moment: Moment
    ) -> None:
        """Count the step's learned words over all processes."""
        learned = (batch["labels"][:, 1:] != IGNORED).sum()
        self._learned = moment.world.sum(learned).clamp_min(1)

    def loss(
        self, part: str, call: nn.Module, batch: Batch, moment: Moment
    ) -> dict[str, Tensor]:
        """Return the mean losses of image tokens ("painting") and words ("answering").

        "loss" is the first plus the weighted second.
        """
        talk, labels = self._talk(batch)
        prefix = self.prefix(self.told(batch, moment), trimmed=True)
        talk |= self.painted(batch, moment)
        found = call(prefix, suffix=self.suffix, **talk, with_logits=False)
        total = F.cross_entropy(
            found.answer_logits[:, :-1].flatten(0, 1).float(),
            labels[:, 1:].flatten(),
            reduction="sum",
        )
        # what is summed here is averaged over micro batches and processes afterwards
        shares = moment.world.size * self.recipe.run.accumulate
        losses = {"painting": found.loss, "answering": total * shares / self._learned}
        weight = self.recipe.answers.weight
        return {**losses, "loss": losses["painting"] + weight * losses["answering"]}

    def _talk(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Return what the model reads of conversations, and their labels."""
        device = self.world.device
        talk = {name: batch[name].to(device) for name in WORDS if name in batch}
        asked = torch.cat(batch["images"])
        if len(asked):
            talk["pictures"] = self.tokens({"image": asked})
        return talk, batch["labels"].to(device)

    def _read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits [b, T − 1, text ids] and their labels [b, T − 1]."""
        talk, labels = self._talk(batch)
        return self.model(**talk).answer_logits[:, :-1], labels[:, 1:]

    @torch.no_grad()
    def judge(self, log: Log | None, moment: Moment) -> dict[str, float]:
        """Look at held-out captions and conversations, every process at all of them.

        Returns:
            The scores of `GenerationTask.judge`, and "answer_loss" and the shares
            "exact…" of `dialogues.judged`.
        """
        scores = super().judge(log, moment)
        self.model.eval()
        count = self.recipe.dialogues.heldout_dialogues
        said = judged(self._read, self.writer, self.questions, count)
        self.model.train()
        return {**scores, "answer_loss": said.pop("heldout_loss"), **said}


def train_unified(recipe: UnifiedRecipe, folder: Path, **how: Any) -> dict[str, Any]:
    """Train a unified model and write it to `folder`/model.

    Arguments, result and errors are those of `loop.train`.
    """
    return train(UnifiedTask, recipe, folder, **how)
