"""The training loop of the tokenizer.

One step: draw pictures, run the model, add the losses (reconstruction, distance of
the rebuilt semantics to the teacher's tokens, the quantizer's own), step the optimizer,
move the average of the weights, wake unused entries. The learning rate warms up, then
falls along a half cosine of the share of steps or of time that is spent, whichever is
larger. The average is what is judged and shipped.
Source: TokenFlow, arXiv:2412.03069, section 3.2; without perceptual and adversarial
losses.
"""

import copy
import dataclasses
import math
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow.config import TokenFlowConfig
from tokenflow.data.glyphs import GlyphPictures
from tokenflow.evaluation.metrics import psnr, usage
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.processing import to_uint8
from tokenflow.training import run
from tokenflow.training.books import Reviver, centre_features
from tokenflow.training.config import TrainConfig
from tokenflow.training.muon import Muon
from tokenflow.training.teacher import (
    PATCH,
    Teacher,
    accuracy,
    as_input,
    draw_batch,
    train_teacher,
)

Say = Callable[[str], None]


@dataclass
class State:
    """What changes while training; all of it is in a checkpoint."""

    model: TokenFlowTokenizer
    average: TokenFlowTokenizer
    optimizer: torch.optim.Optimizer
    reviver: Reviver
    step: int = 0
    seconds: float = 0.0  # spent in training, over all resumptions


def train_tokenizer(
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Train a tokenizer and write it to `folder`/model in float16.

    Args:
        config: The recipe.
        folder: Made if needed; `run` says what is written there.
        resume: Go on from the checkpoint there, with `config` as the recipe.
        device: Where to train.
        say: Takes one line of progress at a time.

    Returns:
        Facts of the run: steps, pictures, minutes, the last held-out scores.

    Raises:
        FileExistsError: A checkpoint is there and `resume` is False.
        FileNotFoundError: Nothing is there to resume, or the font is missing.
        FloatingPointError: The loss is no finite number.
        ValueError: The recipe's model does not fit the teacher.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / run.CHECKPOINT
    if checkpoint.exists() and not resume:
        raise FileExistsError(
            f"train: {checkpoint} is from an earlier run; resume it, or name a new "
            "folder"
        )
    state = _begin(config, torch.device(device))
    size = state.model.config.image_size
    pictures = GlyphPictures("train", seed=config.seed, size=size)
    judged = GlyphPictures("heldout", seed=config.seed, size=size)
    heldout = draw_batch(judged, 0, config.evaluate_pictures)["image"]
    log = run.Log(folder)
    if resume:
        _resume(state, checkpoint)
    else:
        first = draw_batch(pictures, 0, 32)["image"]
        for model in (state.model, state.average):
            centre_features(model, as_input(first).to(device))
        run.write_recipe(folder, config)
        log("start", **dataclasses.asdict(config))
    teacher = _teacher(config, pictures, folder, device, log, say)
    million = sum(p.numel() for p in state.model.parameters()) / 1e6
    say(f"tokenizer: {million:.2f} million parameters, from step {state.step}")
    scores = _loop(state, config, teacher, pictures, heldout, folder, log, say)
    state.average.save_pretrained(folder / "model", dtype=torch.float16)
    facts = {
        "steps": state.step,
        "pictures": state.step * config.batch,
        "minutes": state.seconds / 60,
        **scores,
    }
    log("end", **facts)
    return facts


def _begin(config: TrainConfig, device: torch.device) -> State:
    """Build model, average and optimizer from the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = TokenFlowTokenizer(
            TokenFlowConfig.preset(config.preset, **config.model)
        )
    model = model.to(device).train()
    cell = model.config.image_size // model.config.grid
    if cell != PATCH:
        raise ValueError(
            f"train: a grid cell must be {PATCH} pixels wide, as the teacher's patch, "
            f"got {model.config.image_size} / {model.config.grid}"
        )
    average = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = Muon(
        model.named_parameters(),
        books=model.quantizer.books(),
        book_rate=config.book_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        threads=config.threads,
    )
    return State(model, average, optimizer, Reviver(model, config.revive_after))


def _resume(state: State, checkpoint: Path) -> None:
    models = {"model": state.model, "average": state.average}
    counters, extra = run.load_state(checkpoint, models, state.optimizer)
    state.step, state.seconds = counters["step"], counters["seconds"]
    state.reviver.idle = extra["idle"].to(state.reviver.idle.device)


def _save(state: State, folder: Path) -> None:
    models = {"model": state.model, "average": state.average}
    counters = {"step": state.step, "seconds": state.seconds}
    extra = {"idle": state.reviver.idle}
    run.save_state(folder / run.CHECKPOINT, models, state.optimizer, counters, extra)


def _teacher(
    config: TrainConfig,
    pictures: GlyphPictures,
    folder: Path,
    device: str,
    log: run.Log,
    say: Say,
) -> Teacher:
    """Train the teacher, or read the one that is in the folder already."""
    path = folder / "teacher.safetensors"
    width = TokenFlowConfig.preset(config.preset, **config.model).semantic_target
    if path.exists():
        teacher = Teacher(len(pictures.codes), width)
        teacher.load_state_dict(run.read_tensors(path)[0])
        return teacher.requires_grad_(False).eval().to(device)
    teacher = train_teacher(
        pictures,
        width=width,
        minutes=config.teacher_minutes,
        batch=config.teacher_batch,
        rate=config.teacher_rate,
        seed=config.seed,
        bfloat16=config.bfloat16,
        say=say,
    )
    fresh = GlyphPictures("train", seed=config.seed + 1, size=pictures.size)
    right = accuracy(teacher, fresh, config.evaluate_pictures)
    say(f"teacher: names {right:.1%} of glyph patches on new pictures")
    log("teacher", accuracy=right, classes=teacher.classes)
    run.write_tensors(path, teacher.state_dict())
    return teacher.to(device)


def _loop(
    state: State,
    config: TrainConfig,
    teacher: Teacher,
    pictures: GlyphPictures,
    heldout: Tensor,
    folder: Path,
    log: run.Log,
    say: Say,
) -> dict[str, float]:
    """Train until the limit; evaluates and saves on the way and at the end."""
    before, start = state.seconds, time.monotonic()
    evaluated = saved = state.seconds
    progress = config.progress(state.step, state.seconds)
    window: list[dict[str, float]] = []
    while progress < 1:
        facts = train_step(state, config, teacher, pictures, progress)
        state.seconds = before + time.monotonic() - start
        progress = config.progress(state.step, state.seconds)
        window.append(facts)
        if state.step % 50 == 0 or progress >= 1:
            log("step", step=state.step, seconds=state.seconds, **_mean(window))
            window.clear()
        if state.seconds - evaluated >= config.evaluate_every and progress < 1:
            evaluated = state.seconds
            _report(state, config, heldout, facts, log, say)
        if state.seconds - saved >= config.save_every and progress < 1:
            saved = state.seconds
            _save(state, folder)
    _save(state, folder)
    return _report(state, config, heldout, {}, log, say)


def _mean(window: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(f[name] for f in window) / len(window) for name in window[0]}


def train_step(
    state: State,
    config: TrainConfig,
    teacher: Teacher,
    pictures: GlyphPictures,
    progress: float,
) -> dict[str, float]:
    """Make one step; returns the losses and what goes with them.

    Pictures, dropped scale and revived entries depend on the recipe's seed and the
    step alone, so a resumed run goes on as it would have.
    """
    draw = random.Random(config.seed * 1_000_003 + state.step)
    if state.step in config.fill_at:
        _gradients(state, config, teacher, pictures)
        state.reviver.fill(state.optimizer, draw.randrange(2**31))
    losses, gradients = _gradients(state, config, teacher, pictures)
    if not math.isfinite(losses["loss"]):
        raise FloatingPointError(
            f"train: the loss must be finite, got {losses['loss']} at step {state.step}"
        )
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
    norm = nn.utils.clip_grad_norm_(list(gradients), config.clip)
    rate = _rate(config, state.step, progress)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["share"]
    state.optimizer.step()
    revived = state.reviver.step(
        state.optimizer,
        draw.randrange(2**31),
        revive=config.revive_after > 0 and progress < config.revive_until,
    )
    state.step += 1
    _move_average(state, config.ema)
    return {**losses, "gradient": norm.item(), "rate": rate, "revived": revived}


def _gradients(
    state: State, config: TrainConfig, teacher: Teacher, pictures: GlyphPictures
) -> tuple[dict[str, float], dict[nn.Parameter, Tensor]]:
    """Return the step's mean losses and gradients, each thread doing its share.

    Threads rather than torch's own: two half batches wait for each other once a step,
    two halves of every convolution hundreds of times, which a busy machine punishes.
    """
    device = state.reviver.idle.device
    parameters = [p for p in state.model.parameters() if p.requires_grad]
    share = config.batch // config.threads

    def work(part: int) -> tuple[dict[str, float], tuple[Tensor | None, ...]]:
        if config.threads > 1:
            torch.set_num_threads(1)  # of this thread alone
        state.reviver.name_part(part)
        first = state.step * config.batch + part * share
        images = as_input(draw_batch(pictures, first, share)["image"]).to(device)
        draw = random.Random((config.seed * 1_000_003 + state.step) * 64 + part)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
            losses = compute_losses(state.model, teacher, images, config, draw)
        found = torch.autograd.grad(losses["loss"], parameters, allow_unused=True)
        return {name: value.item() for name, value in losses.items()}, found

    if config.threads == 1:
        parts = [work(0)]
    else:
        with ThreadPoolExecutor(config.threads) as pool:
            parts = list(pool.map(work, range(config.threads)))
    losses = {
        name: sum(part[0][name] for part in parts) / len(parts) for name in parts[0][0]
    }
    gradients = {}
    for i, parameter in enumerate(parameters):
        found = [part[1][i] for part in parts if part[1][i] is not None]
        if found:
            gradients[parameter] = torch.stack(found).sum(0) / len(parts)
    return losses, gradients


def compute_losses(
    model: TokenFlowTokenizer,
    teacher: Teacher,
    images: Tensor,
    config: TrainConfig,
    draw: random.Random,
) -> dict[str, Tensor]:
    """Return every loss by name and their weighted sum as "loss".

    images: [B, 3, H, W] float32 in [-1, 1].
    """
    output = model(images, rng=draw)
    redrawn = output.pixel_reconstruction.float()
    with torch.no_grad():
        target = teacher(images).float()
    rebuilt = output.semantic_reconstruction.float()
    losses = {
        "squared": F.mse_loss(redrawn, images),
        "semantic": (1 - F.cosine_similarity(rebuilt, target, dim=-1)).mean(),
        "vq": output.vq_loss,
        "commitment": output.commitment_loss,
        "entropy": output.entropy_loss,
    }
    total = losses["squared"] + config.semantic * losses["semantic"]
    total = total + losses["vq"] + losses["commitment"] + losses["entropy"]
    if config.l1:
        losses["absolute"] = F.l1_loss(redrawn, images)
        total = total + config.l1 * losses["absolute"]
    return {"loss": total, **losses}


def _rate(config: TrainConfig, step: int, progress: float) -> float:
    warm = min(1.0, (step + 1) / max(config.warmup, 1))
    fall = 0.5 * (1 + math.cos(math.pi * progress))
    low = config.final_rate
    return config.learning_rate * warm * (low + (1 - low) * fall)


@torch.no_grad()
def _move_average(state: State, decay: float) -> None:
    """Move the average towards the weights; faster while it is young."""
    share = 1 - min(decay, (1 + state.step) / (10 + state.step))
    average = list(state.average.state_dict().values())
    weights = list(state.model.state_dict().values())
    for old, new in zip(average, weights, strict=True):
        if old.is_floating_point():
            old.lerp_(new, share)
        else:
            old.copy_(new)


@torch.no_grad()
def quick_scores(model: TokenFlowTokenizer, images: Tensor) -> dict[str, float]:
    """Return PSNR and codebook usage over uint8 pictures [N, 3, H, W]."""
    device = next(model.parameters()).device
    counts = torch.zeros(model.config.codebook_size, dtype=torch.int64)
    values = []
    for part in images.split(64):
        encoded = model.encode(as_input(part).to(device))
        redrawn = to_uint8(model.decode(encoded, output="pt").cpu())
        values.append(psnr(redrawn, part))
        counts += torch.bincount(encoded.indices.flatten().cpu(), minlength=len(counts))
    return {"psnr": torch.cat(values).mean().item(), "usage": usage(counts)}


def _report(
    state: State,
    config: TrainConfig,
    heldout: Tensor,
    facts: dict[str, float],
    log: run.Log,
    say: Say,
) -> dict[str, float]:
    """Judge the average on held-out pictures, log it and say it."""
    state.average.eval()
    scores = quick_scores(state.average, heldout)
    log("heldout", step=state.step, seconds=state.seconds, **scores)
    loss = f", loss {facts['loss']:.4f}" if facts else ""
    say(
        f"{state.seconds / 60:5.1f} min, step {state.step}, "
        f"{state.step * config.batch} pictures{loss}: "
        f"held-out {scores['psnr']:.2f} dB, usage {scores['usage']:.1%}"
    )
    return scores
