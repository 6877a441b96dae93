"""Training of the tokenizer, as a task for the loop.

One step: the model redraws pictures and rebuilds the teacher's features; the decoder
is held against the pictures, the teacher and, from some step on, a discriminator, which
then learns from the same pictures; the codebook is counted, moved and woken. The
average of the weights is what is judged and shipped.
Source: TokenFlow, arXiv:2412.03069, section 3.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from tokenflow.config import PRESETS, TokenFlowConfig
from tokenflow.data.stream import Stream
from tokenflow.evaluation.metrics import perplexity, psnr, usage
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.processing import from_uint8, to_uint8
from tokenflow.training.codebook import CodebookConfig, CodebookHealth, centre_features
from tokenflow.training.discriminator import PatchDiscriminator
from tokenflow.training.log import Log
from tokenflow.training.loop import train
from tokenflow.training.losses import LossConfig, TokenizerLoss
from tokenflow.training.optimizers import OptimizerConfig
from tokenflow.training.parallel import as_forward, whole_state
from tokenflow.training.pictures import (
    DataConfig,
    heldout_batch,
    open_pictures,
    picture_batches,
)
from tokenflow.training.run import RunConfig
from tokenflow.training.task import Batch, Moment, Task
from tokenflow.training.world import World

TRAINED = ("all", "pixel_decoder")
SHOWN = 16  # held-out pictures on a grid
JUDGED = 64  # held-out pictures at a time


@dataclass(frozen=True)
class TeacherChoice:
    """Whose features the semantic half learns.

    Args:
        source: A folder, a file or a hub id, see `load_teacher`. Empty: none, and the
            semantic half learns from the redrawn picture alone.
        kind: "clip", "siglip", "vitamin" or "contrastive"; recognised when None.
        start: Begin with the teacher's weights in the semantic encoder.
    """

    source: str = ""
    kind: str | None = None
    start: bool = False

    def __post_init__(self) -> None:  # noqa: D105
        if self.start and not self.source:
            raise ValueError("train: teacher.start needs a teacher.source, got none")


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The discriminator, see `PatchDiscriminator`.

    Args:
        width: Channels of the first layer.
        layers: Layers that halve the picture.
        norm: "batch" (published) or "group".
        optimizer: What moves it.
    """

    width: int = 64
    layers: int = 3
    norm: str = "batch"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True)
class TokenizerRecipe:
    """All that defines a tokenizer's training.

    Args:
        preset: Name of the tokenizer's configuration.
        model: Fields of that configuration to change.
        enhanced: The doubled pixel decoder, see `TokenFlowConfig.preset`.
        init: A tokenizer to begin with: a shipped name, a folder or a hub id. A pixel
            decoder of another size begins anew.
        train: "all", or "pixel_decoder": all else stays as it is (and `init` is
            needed).
        centre: Shift and scale a new model's features once, so that pictures are told
            apart from the first step on, see `centre_features`; not published.
        data: Pictures.
        teacher: Target of the semantic half.
        loss: Terms and weights.
        codebook: How the books start, learn and are kept in use.
        optimizer: Of the tokenizer.
        discriminator: Shape and optimizer.
        run: For how long, in what steps.

    Raises:
        ValueError: The sections do not fit together.
    """

    task: ClassVar[str] = "tokenizer"

    preset: str = "mini"
    model: dict[str, Any] = field(default_factory=dict)
    enhanced: bool | None = None
    init: str = ""
    train: str = "all"
    centre: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherChoice = field(default_factory=TeacherChoice)
    loss: LossConfig = field(default_factory=LossConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:  # noqa: D105
        for name, known in (("preset", PRESETS), ("train", TRAINED)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"train: {name} must be one of {list(known)}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.train != "all" and not self.init:
            raise ValueError(
                f"train: init must name the tokenizer whose {self.train} is trained, "
                "got nothing"
            )
        if self.run.parallel == "fsdp" and self.loss.adaptive:
            raise ValueError(
                "train: loss.adaptive needs the whole last layer; take ddp, or leave "
                "it out, with fsdp"
            )
        self.config()

    def config(self) -> TokenFlowConfig:
        """Return the tokenizer's configuration."""
        return TokenFlowConfig.preset(self.preset, enhanced=self.enhanced, **self.model)


class TokenizerTask(Task):
    """A tokenizer in training; see `Task` for the methods.

    Args:
        recipe: All that defines it.
        world: This process among the others.
        say: Takes a line for people.
    """

    def __init__(
        self,
        recipe: TokenizerRecipe,
        world: World,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.recipe, self.world = recipe, world
        self.model = build_model(recipe).to(world.device).train()
        size = self.model.config.image_size
        self.source, heldout = open_pictures(recipe.data, size, recipe.run.seed)
        self.heldout = heldout_batch(heldout, recipe.data, size, world)
        self.teacher = self._teacher()
        if recipe.train == "all":
            self._begin()
        self.losses = TokenizerLoss(recipe.loss).to(world.device)
        self.health = CodebookHealth(self.model.quantizer, recipe.codebook, say)
        if recipe.train != "all":
            only(self.model, recipe.train)
        elif self.teacher is None:
            idle(self.model)
        self.parts: dict[str, nn.Module] = {"model": self.model}
        self.optimizers = {"model": recipe.optimizer}
        if recipe.loss.adversarial_weight > 0:
            shape = recipe.discriminator
            critic = PatchDiscriminator(shape.width, shape.layers, shape.norm)
            self.parts["discriminator"] = critic.to(world.device)
            self.optimizers["discriminator"] = shape.optimizer
        self.kept: dict[str, nn.Module] = {"codebook": self.health}
        self._redrawn: Tensor | None = None

    def _teacher(self) -> nn.Module | None:
        choice, config = self.recipe.teacher, self.model.config
        if not choice.source or self.recipe.train != "all":
            return None
        from tokenflow.tokenizer.teachers import load_teacher

        teacher = load_teacher(choice.source, choice.kind).to(self.world.device)
        with torch.no_grad():
            side = config.image_size
            tokens = teacher(torch.zeros(1, 3, side, side, device=self.world.device))
        wanted = (config.grid**2, config.semantic_target)
        if tuple(tokens.shape[1:]) != wanted:
            raise ValueError(
                f"train: the teacher must give {wanted[0]} features of width "
                f"{wanted[1]} (grid², semantic_target), {choice.source} gives "
                f"{tokens.shape[1]} of width {tokens.shape[2]}"
            )
        return teacher

    def _begin(self) -> None:
        """Give a new model its first weights that depend on teacher and pictures."""
        if self.recipe.init:
            return
        if self.recipe.teacher.start:
            from tokenflow.tokenizer.teachers import start_from_teacher

            start_from_teacher(self.model, self.teacher)
        if not self.recipe.centre:
            return
        size = self.model.config.image_size
        first = Stream(self.source, size=size, batch=32, seed=self.recipe.run.seed)
        images = from_uint8(first.read(0)["image"].to(self.world.device))
        centre_features(self.model, images)

    # what the loop asks

    def whole(self, part: str) -> tuple[nn.Parameter, ...]:
        """Return the books, which are searched as they are."""
        return tuple(self.model.quantizer.parameters()) if part == "model" else ()

    def blocks(self, part: str) -> tuple[nn.Module, ...]:
        """Return the transformer layers and the levels of the pixel networks."""
        return outer_blocks(self.model) if part == "model" else ()

    def batches(self, start: int, world: World) -> Iterator[Batch]:
        """Yield this process's share of each step's pictures."""
        recipe, size = self.recipe, self.model.config.image_size
        return picture_batches(self.source, recipe.data, recipe.run, size, start, world)

    def before_step(
        self, batch: Batch, optimizers: dict[str, torch.optim.Optimizer], moment: Moment
    ) -> None:
        """Set the books onto vectors of this batch, where that is due."""
        if self.recipe.train != "all" or not self.health.starts(moment.step):
            return
        with torch.no_grad(), self.health.watch():
            images = from_uint8(batch["image"])
            features = as_forward(self.model, "features", images)
            self.model.quantizer(features, rng=moment.rng("scale"))
        self.health.start(optimizers["model"], moment)

    def loss(
        self, part: str, call: nn.Module, batch: Batch, moment: Moment
    ) -> dict[str, Tensor]:
        """Return the losses of the tokenizer, then of the discriminator."""
        step = moment.step + 1  # the published count
        images = from_uint8(batch["image"])
        if part == "discriminator":
            if not self.losses.plays(step):
                return {}
            return self.losses.discriminator(
                images, self._redrawn, step=step, discriminator=call
            )
        with self.health.watch():
            output = call(images, rng=moment.rng("scale"))
        target = None
        if self.teacher is not None:
            with torch.no_grad():
                target = self.teacher(images)
        self._redrawn = output.pixel_reconstruction.detach()
        critic = self.parts.get("discriminator")
        with frozen(critic):
            return self.losses.generator(
                output,
                images,
                target,
                step=step,
                discriminator=critic,
                last_layer=self.model.pixel_decoder.conv_out.weight,
            )

    def after_step(
        self, optimizers: dict[str, torch.optim.Optimizer], moment: Moment
    ) -> dict[str, float]:
        """Count, move and wake entries."""
        if self.recipe.train != "all":
            return {}
        return self.health.after_step(optimizers["model"], moment)

    @torch.no_grad()
    def judge(self, log: Log, moment: Moment) -> dict[str, float]:
        """Redraw the held-out pictures: PSNR in dB, usage and perplexity."""
        model = self.model.eval()
        counts = torch.zeros(
            model.config.codebook_size, dtype=torch.int64, device=self.world.device
        )
        values, redrawn = [], []
        for part in self.heldout.split(JUDGED):
            images = from_uint8(part.to(self.world.device))
            encoded = as_forward(model, "encode", images)
            drawn = to_uint8(as_forward(model, "decode", encoded, output="pt").cpu())
            values.append(psnr(drawn, part))
            redrawn.append(drawn)
            counts += torch.bincount(encoded.indices.flatten(), minlength=len(counts))
        model.train()
        counts = self.world.sum(counts).cpu()
        mean = self.world.mean(torch.cat(values).mean().to(self.world.device))
        picture = grid(self.heldout[:SHOWN], torch.cat(redrawn)[:SHOWN])
        log.picture("heldout", picture, moment.step)
        return {
            "psnr": mean.item(),
            "usage": usage(counts),
            "perplexity": perplexity(counts),
        }

    def finish(self, folder: Path, world: World) -> None:
        """Write RUN/model, networks in float16, as `from_pretrained` reads it."""
        weights = whole_state(self.model)
        if world.first:
            half = torch.float16
            self.model.save_pretrained(folder / "model", state_dict=weights, dtype=half)
        world.wait()


def train_tokenizer(
    recipe: TokenizerRecipe, folder: Path, **how: Any
) -> dict[str, Any]:
    """Train a tokenizer and write it to `folder`/model, in float16.

    Arguments, result and errors are those of `loop.train`.
    """
    return train(TokenizerTask, recipe, folder, **how)


def build_model(recipe: TokenizerRecipe) -> TokenFlowTokenizer:
    """Return the tokenizer a recipe begins with.

    Raises:
        ValueError: `init` has other shapes than the recipe, but for the pixel decoder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        model = TokenFlowTokenizer(recipe.config())
    if not recipe.init:
        return model
    found = TokenFlowTokenizer.from_pretrained(recipe.init).state_dict()
    own = model.state_dict()
    other = [n for n in own if n not in found or found[n].shape != own[n].shape]
    other += [n for n in found if n not in own]
    wrong = sorted(n for n in other if not n.startswith("pixel_decoder."))
    if wrong:
        raise ValueError(
            f"train: init must fit the recipe's model, {recipe.init} differs in "
            f"{', '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}"
        )
    if other:  # a decoder of another size begins anew, as published
        found = {n: v for n, v in found.items() if not n.startswith("pixel_decoder.")}
    model.load_state_dict(found, strict=not other)
    return model


def only(model: TokenFlowTokenizer, part: str) -> None:
    """Let one part of the model learn, and nothing else."""
    model.requires_grad_(False)
    getattr(model, part).requires_grad_(True)


def idle(model: TokenFlowTokenizer) -> None:
    """Take the semantic decoder out of training, where no teacher asks for it."""
    model.semantic_decoder.requires_grad_(False)
    model.semantic_target_head.requires_grad_(False)


def outer_blocks(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the members of every list of modules that is not inside another list."""
    found: list[nn.Module] = []
    for child in model.children():
        inner = child.children() if isinstance(child, nn.ModuleList) else None
        found += outer_blocks(child) if inner is None else inner
    return tuple(found)


class frozen:
    """Keep a module's parameters from taking a gradient, while a block runs.

    Args:
        module: The module, or None for nothing.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module

    def __enter__(self) -> None:
        """Freeze."""
        self._learn(False)

    def __exit__(self, *error: object) -> None:
        """Let learn again."""
        self._learn(True)

    def _learn(self, yes: bool) -> None:
        if isinstance(self.module, FSDPModule):
            self.module.reshard()  # what it has gathered is not what it keeps
        if self.module is not None:
            self.module.requires_grad_(yes)


def grid(images: Tensor, redrawn: Tensor) -> Image.Image:
    """Return originals over redrawn pictures, uint8 [n, 3, R, R] each, as one."""
    rows = [torch.cat(list(pictures), dim=2) for pictures in (images, redrawn)]
    sheet = torch.cat(rows, dim=1).permute(1, 2, 0).contiguous()
    return Image.fromarray(sheet.numpy())
