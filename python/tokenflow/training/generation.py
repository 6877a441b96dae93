"""A generation model in training: words in, the tokens of a frozen tokenizer out.

Every step encodes its pictures with the tokenizer (in float32, whatever the run's
precision; what is tokens already is taken as it is, see `tokens`), and learns to
predict each scale's tokens from the caption and the scales before it. Held-out pictures
are judged scale by scale, and a fixed few of their captions are drawn at every look.
Source: TokenFlow, arXiv:2412.03069, sections 3.4 and 4.1; the published script.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow import checkpoint
from tokenflow.data.stream import Stream
from tokenflow.generation import prompts, sampling
from tokenflow.generation.config import PRESETS, TokenFlowGenerationConfig
from tokenflow.generation.folders import text_tokenizer
from tokenflow.generation.model import TokenFlowForGeneration
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.processing import from_uint8, to_uint8
from tokenflow.tokenizer.scales import token_counts
from tokenflow.training.log import Log
from tokenflow.training.loop import train
from tokenflow.training.near import head_rows, quantize_near
from tokenflow.training.optimizers import OptimizerConfig
from tokenflow.training.parallel import as_forward, whole_state
from tokenflow.training.pictures import DataConfig, open_pictures, picture_batches
from tokenflow.training.run import RunConfig
from tokenflow.training.task import Batch, Moment, Task
from tokenflow.training.teacher import captions_of
from tokenflow.training.tokenizer import grid, outer_blocks
from tokenflow.training.tokens import holds_tokens, opener
from tokenflow.training.words import MARKS, WordsConfig, learn, told
from tokenflow.training.world import World

JUDGED = 16  # held-out pictures at a time


@dataclass(frozen=True)
class DrawnConfig:
    """The pictures that are drawn at every look at held-out captions.

    Args:
        pictures: How many, of the first held-out captions; 0 for none.
        guidance: As `guidance_scale` of `TokenFlowForGeneration.generate`.
        passes: Looks at each scale, 1 to 3.

    Raises:
        ValueError: A value is out of its range.
    """

    pictures: int = 8
    guidance: float = 7.5
    passes: int = 1

    def __post_init__(self) -> None:  # noqa: D105
        for name in ("pictures", "guidance"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"train: drawn.{name} must be at least 0, got {getattr(self, name)}"
                )
        if self.passes not in sampling.PASSES:
            raise ValueError(
                f"train: drawn.passes must be one of {list(sampling.PASSES)}, "
                f"got {self.passes}"
            )


@dataclass(frozen=True)
class NearConfig:
    """What is made of entries being near each other; see `training.near`.

    Args:
        entries: How many share each target; 1: the token alone, as published.
        temperature: T of their shares exp(−d² / 2T), d being the distance as
            quantization measures it.
        noise: Tokens that are read are taken under normal noise, whose standard
            deviation is drawn evenly up to this for each picture, in numbers of what is
            compared with the entries; targets are what is true then. 0: none, as
            published.
        head: Begin with rows of the head that are near each other where entries are,
            this many times as large as random ones; 0: random ones, as published.

    Raises:
        ValueError: A value is out of its range.
    """

    entries: int = 1
    temperature: float = 0.1
    noise: float = 0.0
    head: float = 0.0

    def __post_init__(self) -> None:  # noqa: D105
        if self.entries < 1:
            raise ValueError(
                f"train: near.entries must be at least 1, got {self.entries}"
            )
        if not self.temperature > 0:
            raise ValueError(
                f"train: near.temperature must be above 0, got {self.temperature}"
            )
        for name in ("noise", "head"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"train: near.{name} must be at least 0, got {getattr(self, name)}"
                )

    @property
    def alone(self) -> bool:
        """Whether a token is all that is read and learned of itself, as published."""
        return self.entries == 1 and not self.noise


@dataclass(frozen=True)
class GenerationRecipe:
    """All that defines a generation model's training.

    Args:
        preset: One of `generation.config.PRESETS`.
        model: Fields of `TokenFlowGenerationConfig` that differ from the preset's;
            scales, codebook_size and code_width are the tokenizer's.
        tokenizer: The frozen image tokenizer: a shipped name, a folder or a hub id.
        init: A generation model to begin with, a folder or a hub id; empty for none.
        words: How captions are read.
        data: Pictures with captions; or a folder of their tokens, see `tokens`.
        near: What is made of entries being near each other.
        drawn: What is drawn to be looked at.
        optimizer: Of all of it.
        run: For how long, in what steps.

    Raises:
        ValueError: There is no such preset.
    """

    task: ClassVar[str] = "generation"

    preset: str = "mini"
    model: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "mini"
    init: str = ""
    words: WordsConfig = field(default_factory=WordsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    near: NearConfig = field(default_factory=NearConfig)
    drawn: DrawnConfig = field(default_factory=DrawnConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:  # noqa: D105
        if self.init and self.near.head:
            raise ValueError(
                f"train: near.head must be 0 where init is given, got {self.near.head}"
            )
        if self.preset not in PRESETS:
            raise ValueError(
                f"train: preset must be one of {list(PRESETS)}, got {self.preset!r}"
            )


class GenerationTask(Task):
    """A generation model in training; see `task.Task` for the methods.

    Attributes:
        kind: Of the model.
        marks: Tokens of a learned vocabulary that stand for no text.

    Args:
        recipe: All that defines it.
        world: This process among the others.
        say: Takes a line for people.

    Raises:
        ValueError: The pictures have no captions, or the sizes do not fit.
        OSError: There is no such tokenizer.
    """

    kind: ClassVar[type[TokenFlowForGeneration]] = TokenFlowForGeneration
    marks: ClassVar[tuple[str, ...]] = MARKS

    def __init__(
        self,
        recipe: GenerationRecipe,
        world: World,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.recipe, self.world = recipe, world
        tokenizer = TokenFlowTokenizer.from_pretrained(recipe.tokenizer)
        self.size, data = tokenizer.config.image_size, recipe.data
        self.source, heldout = open_pictures(
            data, self.size, recipe.run.seed, opener(tokenizer)
        )
        if (data.flip or data.augment != "none") and holds_tokens(self.source):
            raise ValueError(
                "train: data.flip and data.augment are of pictures, "
                f"{data.source} holds tokens"
            )
        if holds_tokens(self.source) and not recipe.near.alone:
            raise ValueError(
                "train: near.entries must be 1 and near.noise 0 where the data are "
                "tokens, which do not tell what else was near, got "
                f"{recipe.near.entries} and {recipe.near.noise}"
            )
        if recipe.near.entries > tokenizer.config.codebook_size:
            raise ValueError(
                f"train: near.entries must be at most {tokenizer.config.codebook_size}"
                f", the entries there are, got {recipe.near.entries}"
            )
        count = min(data.heldout_pictures, len(heldout))
        self.heldout = Stream(heldout, size=self.size, batch=count, flip=False).read(0)
        next(captions_of(self.source, 1, data.source))  # before anything takes time
        model = _build(recipe, self.kind, tokenizer).attach(tokenizer)
        if model.text_tokenizer is None:
            model.text_tokenizer = self._words(model.config)
            say(f"vocabulary: {len(model.text_tokenizer)} tokens")
        model.config.pad_id = _pad_of(model)
        self.begin(model, say)
        self.model = model.to(world.device).train()
        self.suffix = prompts.suffix_ids(model.text_tokenizer).to(world.device)
        self.parts: dict[str, nn.Module] = {"model": self.model}
        self.optimizers = {"model": recipe.optimizer}

    def _words(self, config: TokenFlowGenerationConfig) -> Any:
        """Return the text tokenizer: the one that is named, or one that is learned."""
        words = self.recipe.words
        if words.tokenizer:
            folder = Path(words.tokenizer)
            found = text_tokenizer(folder if folder.is_dir() else words.tokenizer)
            if found is None:
                raise ValueError(
                    "train: words.tokenizer must be a folder with a text tokenizer, "
                    f"{folder} has no tokenizer_config.json"
                )
            return found
        return learn(self.texts(), config.image_start, self.marks)

    def begin(self, model: TokenFlowForGeneration, say: Callable[[str], None]) -> None:
        """Give a model, on the CPU with both tokenizers, what it begins with."""

    def texts(self) -> Iterator[str]:
        """Yield what a vocabulary is learned from."""
        count, name = self.recipe.words.captions, self.recipe.data.source
        return captions_of(self.source, count, name)

    def blocks(self, part: str) -> tuple[nn.Module, ...]:
        """Return the layers of the language model."""
        return outer_blocks(self.model.llama)

    def batches(self, start: int, world: World) -> Iterator[Batch]:
        """Yield this process's share of each step's pictures and captions."""
        recipe, size = self.recipe, self.size
        return picture_batches(self.source, recipe.data, recipe.run, size, start, world)

    def prefix(self, texts: list[str], *, trimmed: bool = False) -> Tensor:
        """Return texts as the ids in front of a picture, [B, P] int64.

        Args:
            texts: What is said of each picture.
            trimmed: Leave padding out where every row has it: nothing looks at it, and
                places count from each other.
        """
        config = self.model.config
        ids = prompts.prefix_ids(
            self.model.text_tokenizer, texts, config.text_length, config.pad_id
        )
        if trimmed:
            ids = ids[:, prompts.common_padding(ids, config.pad_id) :]
        return ids.to(self.world.device)

    def tokens(self, batch: Batch, part: slice = slice(None)) -> Tensor:
        """Return the tokens of some of a batch, [b, N] int64, without autocast."""
        if "indices" in batch:
            return batch["indices"][part].to(self.world.device)
        images = batch["image"][part].to(self.world.device)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.model.image_tokenizer.encode(from_uint8(images)).indices

    def painted(self, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """Return the tokens of a batch, and what shares their targets, if anything."""
        chosen = self.recipe.near
        if chosen.alone:
            return {"indices": self.tokens(batch)}
        images = batch["image"].to(self.world.device)
        tokenizer = self.model.image_tokenizer
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            features = tokenizer.features(from_uint8(images)).float()
            found = quantize_near(
                tokenizer.quantizer,
                features,
                chosen.entries,
                chosen.temperature,
                self._noise(batch, moment) if chosen.noise else None,
            )
        return vars(found)

    def _noise(self, batch: Batch, moment: Moment) -> Tensor:
        """Return what is added before tokens are taken; each picture has its amount."""
        shape = self.model.config.num_tokens, self.model.config.code_width
        rows = []
        for number in batch["number"].tolist():
            rng = moment.rng("noise", number)
            drawn = torch.Generator().manual_seed(rng.getrandbits(63))
            amount = self.recipe.near.noise * rng.random()
            rows.append(amount * torch.randn(shape, generator=drawn))
        return torch.stack(rows).to(self.world.device)

    def loss(
        self, part: str, call: nn.Module, batch: Batch, moment: Moment
    ) -> dict[str, Tensor]:
        """Return the mean loss of image tokens and of what ends a picture."""
        prefix = self.prefix(self.told(batch, moment), trimmed=True)
        painted = self.painted(batch, moment)
        found = call(prefix, suffix=self.suffix, **painted, with_logits=False)
        return {"loss": found.loss}

    def told(self, batch: Batch, moment: Moment) -> list[str]:
        """Return what is said of each picture of a batch."""
        words, numbers = self.recipe.words, batch["number"].tolist()
        pairs = zip(batch["caption"], numbers, strict=True)
        return [told(caption, words, moment.seed, n) for caption, n in pairs]

    @torch.no_grad()
    def judge(self, log: Log | None, moment: Moment) -> dict[str, float]:
        """Look at the held-out pictures, every process at all of them.

        Returns:
            "loss" and "accuracy" (share of tokens that are the likeliest one) of all
            image tokens, and "loss_8x8", "accuracy_8x8" of each scale, given the true
            scales before it.
        """
        model = self.model.eval()
        captions = self.heldout["caption"]
        counts = token_counts(model.scales)
        total = torch.zeros(2, len(counts), dtype=torch.float64)
        for start in range(0, len(captions), JUDGED):
            here = slice(start, start + JUDGED)
            true = self.tokens(self.heldout, here)
            prefix = self.prefix(captions[here], trimmed=True)
            found = model(prefix, true, self.suffix)
            first = model.config.image_start
            logits = found.logits[:, : true.shape[1]].float()
            losses = F.cross_entropy(
                logits.flatten(0, 1), true.flatten() + first, reduction="none"
            ).view_as(true)
            right = logits[..., first:].argmax(-1) == true
            for i, values in enumerate((losses, right)):
                parts = values.double().sum(0).cpu().split(counts)
                total[i] += torch.stack([part.sum() for part in parts])
        if log is not None and self.recipe.drawn.pictures:
            log.picture("drawn", self._sheet(), moment.step)
        model.train()
        mean = total / (len(captions) * torch.tensor(counts))
        whole = total.sum(1) / (len(captions) * sum(counts))
        scores = {"loss": whole[0].item(), "accuracy": whole[1].item()}
        for i, (height, width) in enumerate(model.scales):
            scores[f"loss_{height}x{width}"] = mean[0, i].item()
            scores[f"accuracy_{height}x{width}"] = mean[1, i].item()
        return scores

    def _sheet(self) -> Any:
        """Return the first held-out pictures over what is drawn of their captions."""
        drawn, model = self.recipe.drawn, self.model
        pictures = as_forward(
            model,
            "generate",
            self.prefix(self.heldout["caption"][: drawn.pictures]),
            guidance_scale=drawn.guidance,
            refinement=sampling.PASSES[drawn.passes],
            generator=torch.Generator().manual_seed(self.recipe.run.seed),
            output="pt",
        )
        if "indices" in self.heldout:
            shown = self.tokens(self.heldout, slice(drawn.pictures))
            true = to_uint8(model.image_tokenizer.decode(shown, output="pt")).cpu()
        else:
            true = self.heldout["image"][: drawn.pictures]
        return grid(true, to_uint8(pictures).cpu())

    def finish(self, folder: Path, world: World) -> None:
        """Write RUN/model in float16, both tokenizers with it."""
        weights = whole_state(self.model)
        if world.first:
            half = {name: value.half() for name, value in weights.items()}
            self.model.save_pretrained(folder / "model", state_dict=half)
        world.wait()


def train_generation(
    recipe: GenerationRecipe, folder: Path, **how: Any
) -> dict[str, Any]:
    """Train a generation model and write it to `folder`/model.

    Arguments, result and errors are those of `loop.train`.
    """
    return train(GenerationTask, recipe, folder, **how)


def _build(
    recipe: GenerationRecipe,
    kind: type[TokenFlowForGeneration],
    tokenizer: TokenFlowTokenizer,
) -> TokenFlowForGeneration:
    """Return the model, new or one to go on with, without an image tokenizer."""
    its = tokenizer.config
    sizes = {
        "scales": its.scales,
        "codebook_size": its.codebook_size,
        "code_width": its.semantic_dim + its.pixel_dim,
    }
    try:
        config = kind.config_class.preset(recipe.preset, **{**sizes, **recipe.model})
    except (TypeError, ValueError) as error:
        raise ValueError(f"train: model: {error}") from None
    config.image_tokenizer = checkpoint.lasting(recipe.tokenizer)  # or a copy is kept
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        model = kind(config)
        if recipe.near.head:
            rows = model.head.weight[config.image_start :]
            rows.data.copy_(head_rows(tokenizer.quantizer, rows, recipe.near.head))
    if recipe.init:
        begun = kind.from_pretrained(recipe.init, image_tokenizer=tokenizer)
        model.load_state_dict(begun.state_dict())
        model.text_tokenizer = begun.text_tokenizer
        model.config.pad_id = begun.config.pad_id
    return model


def _pad_of(model: TokenFlowForGeneration) -> int:
    """Return the padding's id, checked with all ids of the text tokenizer.

    Raises:
        ValueError: An id would be one of the picture's.
    """
    known, first = len(model.text_tokenizer), model.config.image_start
    if known > first:
        raise ValueError(
            f"train: model.image_start must be at least {known}, the text tokenizer's "
            f"tokens, got {first}"
        )
    pad = model.text_tokenizer.pad_token_id
    return model.config.pad_id if pad is None else pad
