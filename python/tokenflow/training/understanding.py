"""Teaching a language model to read the tokens of pictures: a task for the loop.

Two stages, two recipes: first the projector alone, on pictures with captions, then the
projector and the language model on questions and answers, from what the first one
wrote (`model.init`). The tokenizer is frozen in both. Every learned word of a step
counts alike, however the step is split over processes and micro batches.
Source: TokenFlow, arXiv:2412.03069, section 3.3; LLaVA-1.5, arXiv:2310.03744.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow import checkpoint
from tokenflow._language import AutoModelForCausalLM, AutoTokenizer
from tokenflow._transformers import AutoConfig
from tokenflow.tokenizer.model import STRATEGIES, TokenFlowTokenizer
from tokenflow.tokenizer.processing import from_uint8
from tokenflow.tokenizer.teachers import load_teacher
from tokenflow.training.dialogues import (
    WORDS,
    DialogueConfig,
    DialogueStream,
    Writer,
    judged,
    open_sources,
    spoken,
)
from tokenflow.training.log import Log
from tokenflow.training.loop import train
from tokenflow.training.optimizers import OptimizerConfig
from tokenflow.training.parallel import whole_weights
from tokenflow.training.run import RunConfig
from tokenflow.training.small_words import MARKS, learn_words
from tokenflow.training.task import Batch, Moment, Task
from tokenflow.training.tokenizer import outer_blocks
from tokenflow.training.world import World
from tokenflow.understanding import prompts
from tokenflow.understanding.config import CONTINUOUS
from tokenflow.understanding.model import TokenFlowForUnderstanding, written

INPUTS = (*STRATEGIES, "pixel", "teacher", "none")
TRAINED = ("projector", "all")
SAVED = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class UnderstandingConfig:
    """What an understanding model is put together from.

    Args:
        init: A trained understanding model to go on from; the parts when empty.
        tokenizer: Of pictures: a shipped name, a folder, a hub id.
        language_model: A folder or hub id; a new one of `text` when empty.
        text: Llama's sizes of a new language model.
        vocabulary: Words of a new one, learned from the conversations.
        inputs: What is read of a picture. "last", "semantic", "all", "residual": see
            `understanding_features`. "pixel": "last" with the semantic half always 0.
            "teacher": the continuous features of `teacher` on pictures of the
            tokenizer's size, and no tokens. "none": nothing, to see what the questions
            alone tell; such a model is to be asked without pictures.
        teacher: See `load_teacher`.
        template: Of conversations, see `prompts.TEMPLATES`.
        resize: How pictures become square: "pad", "squash" or "crop".
        length: Positions of a conversation at most.

    Raises:
        ValueError: A value is out of its range.
    """

    init: str = ""
    tokenizer: str = "mini"
    language_model: str = ""
    text: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 512
    inputs: str = "last"
    teacher: str = ""
    template: str = "qwen_2_5"
    resize: str = "pad"
    length: int = 2048

    def __post_init__(self) -> None:  # noqa: D105
        known = tuple(prompts.TEMPLATES)
        for name, allowed in (("inputs", INPUTS), ("template", known)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"train: model.{name} must be one of {list(allowed)}, "
                    f"got {getattr(self, name)!r}"
                )
        for name, least in (("length", 2), ("vocabulary", 256 + len(MARKS))):
            if getattr(self, name) < least:
                raise ValueError(
                    f"train: model.{name} must be at least {least}, "
                    f"got {getattr(self, name)}"
                )
        if (self.inputs == "teacher") != bool(self.teacher):
            raise ValueError(
                'train: model.teacher must be given with inputs "teacher" and only '
                f"then, got inputs {self.inputs!r} and teacher {self.teacher!r}"
            )


@dataclass(frozen=True)
class UnderstandingRecipe:
    """All that defines the training of an understanding model.

    Args:
        train: "projector" (stage 1) or "all": projector and language model (stage 2).
        saved: Dtype of the written projector and language model: "float32",
            "bfloat16", "float16"; "auto" is bfloat16 after training in bfloat16, and
            float16 otherwise. What looks at pictures is never rounded.
        model: What it is put together from.
        data: Conversations.
        optimizer: Of what is trained.
        run: For how long, in what steps.

    Raises:
        ValueError: `train` or `saved` is none of these, or parts contradict each other.
    """

    task: ClassVar[str] = "understanding"

    train: str = "all"
    saved: str = "auto"
    model: UnderstandingConfig = field(default_factory=UnderstandingConfig)
    data: DialogueConfig = field(default_factory=DialogueConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:  # noqa: D105
        for name, allowed in (("train", TRAINED), ("saved", SAVED)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"train: {name} must be one of {list(allowed)}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.model.inputs == "none" and self.train == "projector":
            raise ValueError('train: train must be all with inputs "none"')
        if self.model.inputs == "pixel" and self.run.parallel == "fsdp":
            raise ValueError('train: run.parallel must be ddp with inputs "pixel"')

    @property
    def dtype(self) -> str:
        """What `saved` means."""
        if self.saved != "auto":
            return self.saved
        return "bfloat16" if self.run.precision == "bfloat16" else "float16"


class UnderstandingTask(Task):
    """An understanding model in training; see `Task` for the methods.

    Args:
        recipe: All that defines it.
        world: This process among the others.
        say: Takes a line for people.

    Raises:
        OSError: A part cannot be read.
        ValueError: The parts do not fit together.
    """

    def __init__(
        self,
        recipe: UnderstandingRecipe,
        world: World,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.recipe, self.world = recipe, world
        self.model = build_model(recipe, say)
        size = self.model.config.image_size
        self.source, self.heldout = open_sources(recipe.data, size, recipe.run.seed)
        broken = getattr(getattr(self.source, "source", self.source), "broken", [])
        if broken:
            say(f"{len(broken)} broken records left out, the first: {broken[0]}")
        self.writer = Writer(
            self.model.processor,
            recipe.model.length,
            blind=recipe.model.inputs == "none",
        )
        self.model.requires_grad_(False)
        self.model.projector.requires_grad_(recipe.model.inputs != "none")
        if recipe.train == "all":
            self.model.language_model.requires_grad_(True)
        if recipe.model.inputs == "pixel":
            _see_pixels_alone(self.model)
        self.model.to(world.device).train()
        self.parts: dict[str, nn.Module] = {"model": self.model}
        self.optimizers = {"model": recipe.optimizer}
        self._learned = torch.ones((), device=world.device)

    def whole(self, part: str) -> tuple[nn.Parameter, ...]:
        """Return the parameters of what looks at pictures, which is frozen."""
        return tuple(self.model.eye.parameters())

    def blocks(self, part: str) -> tuple[nn.Module, ...]:
        """Return the language model's layers."""
        return outer_blocks(self.model.language_model)

    def batches(self, start: int, world: World) -> Iterator[Batch]:
        """Yield this process's share of each step's conversations."""
        data, run = self.recipe.data, self.recipe.run
        stream = DialogueStream(
            self.source,
            self.writer,
            batch=run.batch,
            group=data.group,
            seed=run.seed,
            start=start,
            rank=world.rank,
            world=world.size,
            workers=data.workers,
        )
        return iter(stream)

    def before_step(
        self, batch: Batch, optimizers: dict[str, torch.optim.Optimizer], moment: Moment
    ) -> None:
        """Count the step's learned words over all processes."""
        learned = (batch["labels"][:, 1:] != prompts.IGNORED).sum()
        self._learned = moment.world.sum(learned).clamp_min(1)

    def loss(
        self, part: str, call: nn.Module, batch: Batch, moment: Moment
    ) -> dict[str, Tensor]:
        """Return the mean cross-entropy of the step's learned words as "loss"."""
        logits, labels = self._read(call, batch)
        total = F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), reduction="sum"
        )
        # what is summed here is averaged over micro batches and processes afterwards
        shares = moment.world.size * self.recipe.run.accumulate
        return {"loss": total * shares / self._learned}

    def _read(self, call: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits [b, T − 1, vocabulary] and their labels [b, T − 1]."""
        device = self.world.device
        inputs = {name: batch[name].to(device) for name in WORDS if name in batch}
        labels = batch["labels"].to(device)
        images = torch.cat(batch["images"]).to(device)
        if not len(images) and self.recipe.model.inputs != "none":
            # the projector takes its part in every step
            inputs, labels, images = self._with_a_picture(inputs, labels)
        if len(images):
            inputs["pixel_values"] = from_uint8(images)
        if inputs["attention_mask"].ndim == 3:
            inputs["attention_mask"] = self._one_for_all_heads(inputs["attention_mask"])
        output = call(**inputs, use_cache=False)
        return output.logits[:, :-1], labels[:, 1:]

    def _one_for_all_heads(self, mask: Tensor) -> Tensor:
        """Return [b, T, T] bool as the language model's attention takes it."""
        mask, language = mask[:, None], self.model.language_model
        if language.config._attn_implementation != "eager":
            return mask
        least = torch.finfo(language.dtype).min
        return torch.zeros_like(mask, dtype=language.dtype).masked_fill(~mask, least)

    def _with_a_picture(
        self, inputs: dict[str, Tensor], labels: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Add a row of which nothing is learned: a black picture."""
        processor = self.model.processor
        count, side = processor.image_tokens, processor.image_size
        wide = (0, max(0, count - labels.shape[1]), 0, 1)
        padded = {name: F.pad(value, wide) for name, value in inputs.items()}
        padded["input_ids"][-1, :count] = processor.image_token_id
        padded["attention_mask"][-1, :count] = 1
        black = torch.zeros((1, 3, side, side), dtype=torch.uint8, device=labels.device)
        return padded, F.pad(labels, wide, value=prompts.IGNORED), black

    @torch.no_grad()
    def judge(self, log: Log, moment: Moment) -> dict[str, float]:
        """Read the held-out conversations, every process all of them; see `judged`."""
        model = self.model.eval()
        count = self.recipe.data.heldout_dialogues
        scores = judged(
            lambda batch: self._read(model, batch), self.writer, self.heldout, count
        )
        model.train()
        return scores

    def finish(self, folder: Path, world: World) -> None:
        """Write RUN/model as `saved` says."""
        dtype = getattr(torch, self.recipe.dtype)
        weights = {}
        for name, value in whole_weights(self.model):  # never all on one device
            if world.first:
                weights[name] = written(name, value, dtype).cpu()
        if world.first:
            place = folder / "model"
            self.model.save_pretrained(place, state_dict=weights, dtype=dtype)
        world.wait()


def train_understanding(
    recipe: UnderstandingRecipe, folder: Path, **how: Any
) -> dict[str, Any]:
    """Train an understanding model and write it to `folder`/model.

    Arguments, result and errors are those of `loop.train`.
    """
    return train(UnderstandingTask, recipe, folder, **how)


def build_model(
    recipe: UnderstandingRecipe, say: Callable[[str], None] = lambda line: None
) -> TokenFlowForUnderstanding:
    """Return the model a recipe begins with.

    Raises:
        OSError: A part cannot be read.
        ValueError: Parts do not fit.
    """
    config = recipe.model
    strategy = config.inputs if config.inputs in STRATEGIES else "last"
    taught = config.inputs == "teacher"
    if config.init:
        model = TokenFlowForUnderstanding.from_pretrained(
            config.init, dtype=torch.float32
        )
        if model.config.strategy != (CONTINUOUS if taught else strategy):
            raise ValueError(
                f"train: model.init must be a model of inputs {config.inputs!r}, "
                f"{config.init} reads {model.config.strategy!r}"
            )
        processor = model.processor
        processor.template, processor.resize = config.template, config.resize
        return model
    eyes = TokenFlowTokenizer.from_pretrained(config.tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        if config.language_model:
            words = AutoTokenizer.from_pretrained(config.language_model)
            speaker = AutoModelForCausalLM.from_pretrained(
                config.language_model, dtype=torch.float32
            )
        else:
            texts = spoken(recipe.data, config.template, recipe.run.seed)
            words = learn_words(texts, config.vocabulary)
            say(f"vocabulary: {len(words)} words")
            speaker = _new_speaker(config, words)
        model = TokenFlowForUnderstanding.from_parts(
            load_teacher(config.teacher) if taught else eyes,
            speaker,
            words,
            strategy=strategy,
            template=config.template,
            resize=config.resize,
            image_size=eyes.config.image_size if taught else None,
        )
    if not taught:
        model.config.image_tokenizer = checkpoint.lasting(config.tokenizer)
    return model


def _new_speaker(config: UnderstandingConfig, words: Any) -> nn.Module:
    """Return a new language model of Llama's kind for these words."""
    sizes = {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "max_position_embeddings": config.length,
        "tie_word_embeddings": True,
        **config.text,
    }
    made = AutoConfig.for_model(
        "llama",
        vocab_size=len(words) + 1,  # and <image>
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **sizes,
    )
    return AutoModelForCausalLM.from_config(made)


def _see_pixels_alone(model: TokenFlowForUnderstanding) -> None:
    """Keep what the projector makes of the semantic half 0.

    So the model is one of "last" to everybody else, and as large.
    """
    weight, half = model.projector[0].weight, model.tokenizer.config.semantic_dim
    with torch.no_grad():
        weight[:, :half] = 0

    def without(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[:, :half] = 0
        return gradient

    weight.register_hook(without)
