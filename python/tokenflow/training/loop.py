"""The training loop, for every task: batches in, steps, averages, checkpoints out.

One step: for each micro batch and each part of the task, losses and gradients; then,
part by part, the gradient is clipped and the optimizer steps; the task tends to what
has no gradient (its codebook); the average moves. On the way the averaged weights are
judged on held-out pictures, and checkpoints are saved. All that is random is a pure
function of the seed, the step and a name, on any number of processes, so a resumed run
is the run it would have been. Asked to stop, it saves first.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenflow.training import state as states
from tokenflow.training.attention import float32_attention
from tokenflow.training.average import Average
from tokenflow.training.config import changed, write
from tokenflow.training.log import Log
from tokenflow.training.memory import keep_freed_memory
from tokenflow.training.optimizers import (
    build_optimizer,
    clip_gradient,
    set_rate,
)
from tokenflow.training.parallel import Part, recompute
from tokenflow.training.run import PRECISIONS, RunConfig
from tokenflow.training.state import Checkpoints
from tokenflow.training.stop import Ears, Stopped
from tokenflow.training.task import Batch, Moment, Task
from tokenflow.training.world import World, join


class Recipe(Protocol):
    """All that defines a run, a dataclass."""

    run: RunConfig


class Run:
    """A task in training: what `fit` holds between two steps.

    Args:
        task: What is trained.
        config: For how long, in what steps.
        folder: RUN.
        world: This process among the others.
        log: Its voice.
    """

    def __init__(
        self, task: Task, config: RunConfig, folder: Path, world: World, log: Log
    ) -> None:
        share = world.size * config.accumulate
        if config.batch % share:
            raise ValueError(
                f"train: run.batch must be a multiple of {share}, the processes times "
                f"run.accumulate, got {config.batch}"
            )
        self.task, self.config, self.world, self.log = task, config, world, log
        self.step, self.seconds, self.broken = 0, 0.0, 0
        self.saved: int | None = None  # the step of the latest checkpoint
        self.parts: dict[str, Part] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, module in task.parts.items():
            blocks = task.blocks(name)
            if config.compile:
                for block in blocks:
                    block.forward = torch.compile(block.forward, dynamic=True)
            if config.recompute:
                recompute(blocks)
            whole = task.whole(name)
            self.parts[name] = Part(module, config.parallel, world, whole, blocks)
            self.optimizers[name] = build_optimizer(module, task.optimizers[name])
        module = task.parts[task.averaged()]
        self.average = Average(module, config.average, task.whole(task.averaged()))
        scaled = config.precision == "float16" and world.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=scaled)
        self.checkpoints = Checkpoints(folder / states.FOLDER, world, config.keep)

    # one step

    def moment(self) -> Moment:
        """Return where the run is."""
        progress = self.config.progress(self.step, self.seconds)
        return Moment(self.step, progress, self.config.seed, self.world)

    def make_step(self, batch: Batch) -> dict[str, float]:
        """Make one step with this process's share of its batch; returns facts.

        Raises:
            FloatingPointError: A loss is no finite number.
        """
        moment = self.moment()
        count = self.config.accumulate
        facts: dict[str, float] = {}
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.task.before_step(batch, self.optimizers, moment)
        moved = set()
        narrow = self.config.precision != "float32"
        wide = narrow and self.world.device.type == "cpu"
        for i, micro in enumerate(_split(batch, count)):
            for name, part in self.parts.items():
                with (
                    part.accumulating(i == count - 1),
                    float32_attention() if wide else nullcontext(),
                ):
                    losses = self._losses(name, part, micro, moment)
                    if not losses:
                        continue
                    moved.add(name)
                    self.scaler.scale(losses["loss"] / count).backward()
                for key, value in losses.items():
                    label = key if name == self.task.averaged() else f"{name}/{key}"
                    facts[label] = facts.get(label, 0.0) + value.item() / count
        if not all(math.isfinite(value) for value in facts.values()):
            raise FloatingPointError(
                f"train: losses must be finite, got {facts} at step {self.step}"
            )
        for name in (n for n in self.parts if n in moved):
            facts |= self._move(name, moment)
        self.scaler.update()
        facts |= self.task.after_step(self.optimizers, moment)
        self.average.update(self.step)
        self.step += 1
        return facts

    def _losses(
        self, name: str, part: Part, batch: Batch, moment: Moment
    ) -> dict[str, Tensor]:
        dtype, device = PRECISIONS[self.config.precision], self.world.device.type
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return self.task.loss(name, part.call, batch, moment)

    def _move(self, name: str, moment: Moment) -> dict[str, float]:
        """Clip one part's gradient and step its optimizer."""
        config, optimizer = self.task.optimizers[name], self.optimizers[name]
        self.parts[name].finish_gradients()
        self.scaler.unscale_(optimizer)
        norm = clip_gradient(self.parts[name].module, config.clip)
        rate = config.rate(moment.step, moment.progress)
        set_rate(optimizer, rate)
        self.scaler.step(optimizer)
        start = "" if name == self.task.averaged() else f"{name}/"
        return {f"{start}gradient": norm.item(), f"{start}rate": rate}

    # checkpoints

    def tensors(self) -> states.Tensors:
        """Return everything that changes while training, by name."""
        found = states.random_tensors(self.world)
        for kind, modules in (("part", self.task.parts), ("kept", self.task.kept)):
            for name, module in modules.items():
                for key, value in module.state_dict().items():
                    found[f"{kind}/{name}/{key}"] = value
        for name, optimizer in self.optimizers.items():
            named = dict(self.task.parts[name].named_parameters())
            found |= states.optimizer_tensors(name, optimizer, named)
        for key, value in self.average.values.items():
            found[f"average/{key}"] = value
        facts = {
            "step": self.step,
            "seconds": self.seconds,
            "broken": self.broken,
            "memory": {
                name: states.memory_of(optimizer)
                for name, optimizer in self.optimizers.items()
            },
        }
        found["facts"] = states.as_tensor([facts, self.scaler.state_dict()])
        return found

    def save(self) -> None:
        """Write a checkpoint of this moment, if there is none."""
        if self.saved == self.step:
            return
        for part in self.parts.values():
            part.share_buffers()
        self.checkpoints.save(self.step, self.tensors())
        self.saved = self.step

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: It is not of such a run, or a part is missing.
            OSError: It is damaged.
        """
        held = self.checkpoints.index(path)
        for name, optimizer in self.optimizers.items():
            named = dict(self.task.parts[name].named_parameters())
            states.remember(name, optimizer, named, held)
        tensors = states.keep_random(self.tensors(), held)
        self.checkpoints.load(path, tensors)
        facts, scaler = states.as_facts(tensors["facts"])
        for name, wanted in facts.get("memory", {}).items():
            states.check_memory(path, name, self.optimizers[name], wanted)
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.saved = self.step
        self.broken = facts["broken"]
        self.scaler.load_state_dict(scaler)
        if f"random/{self.world.rank}/torch" in tensors:
            states.set_random(tensors, self.world)


def _split(batch: Batch, count: int) -> Iterator[Batch]:
    """Yield `count` equal parts of a batch; what is no list or tensor is in each."""
    for i in range(count):
        part = {}
        for key, value in batch.items():
            if isinstance(value, Tensor | list):
                size = len(value) // count
                value = value[i * size : (i + 1) * size]
            part[key] = value
        yield part


def fit(
    make: Callable[[Callable[[str], None]], Task],
    recipe: Recipe,
    folder: Path,
    *,
    world: World | None = None,
    resume: bool = False,
    bar: bool | None = None,
) -> dict[str, Any]:
    """Train a task and write what comes of it to `folder`.

    Args:
        make: Makes the task; is given what takes a line for people.
        recipe: Its `run` says for how long, in what steps; kept as RUN/recipe.yaml.
        folder: RUN: recipe, log, checkpoints, pictures, result.
        world: This process among the others; alone when None.
        resume: Go on from the current checkpoint, or begin where there is none.
        bar: Show a progress bar; None for "if stderr is a terminal".

    Returns:
        Facts of the run: steps, samples, minutes, broken samples, the last scores.

    Raises:
        FileExistsError: A checkpoint is there and `resume` is False.
        ValueError: The checkpoint there is not of such a run.
        OSError: A checkpoint could not be written; the one before is whole.
        FloatingPointError: A loss is no finite number.
        Stopped: A signal asked for it; a checkpoint is written.
    """
    world, config = world or World(), recipe.run
    found = Checkpoints(folder / states.FOLDER, world, config.keep).current()
    if found is not None and not resume:
        raise FileExistsError(
            f"train: {found} is of an earlier run; resume it, or name a new folder"
        )
    states.seed_random(config.seed, world)
    log = Log(folder, tensorboard=config.tensorboard, bar=bar, silent=not world.first)
    run: Run | None = None
    try:
        run = Run(make(log.say), config, folder, world, log)
        if found is not None:
            run.resume(found)
        if world.first:
            write(folder, recipe)
        facts = {"processes": world.size, "recipe": changed(recipe)}
        if found is None:
            name = getattr(recipe, "task", "")
            log.event("start", task=name, seed=config.seed, **facts)
        else:
            log.event("resume", step=run.step, seconds=run.seconds, **facts)
        sizes = {
            n: sum(p.numel() for p in m.parameters()) for n, m in run.task.parts.items()
        }
        shown = ", ".join(f"{n} {size / 1e6:.2f}" for n, size in sizes.items())
        log.say(f"parameters in millions: {shown}; from step {run.step}")
        with Ears(silent=not world.first) as ears:
            _go(run, ears)
        return _finish(run, folder)
    finally:
        for part in run.parts.values() if run else ():
            part.release()
        log.close()


def train(
    make: Callable[[Any, World, Callable[[str], None]], Task],
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    bar: bool | None = None,
) -> dict[str, Any]:
    """Train what a recipe describes and write it to `folder`/model.

    One process, or one of those that torchrun started.

    Args:
        make: The task, of the recipe, the processes, and what takes a line for people.
        recipe: All that defines it; written to `folder`/recipe.yaml.
        folder: RUN; see `log` and `state` for what else is written there.
        resume: Go on from the checkpoint there, or begin where there is none.
        device: "cpu", "cuda" or "cuda:1".
        bar: Show a progress bar; None for "if stderr is a terminal".

    Returns:
        Facts of the run: steps, samples, minutes, broken samples, the last scores.

    Raises:
        FileExistsError: A checkpoint is there and `resume` is False.
        FileNotFoundError: Samples, another model or the font are not there.
        FloatingPointError: A loss is no finite number.
        ValueError: The parts do not fit together, or the checkpoint is of another run.
    """
    with join(device) as world:
        if world.device.type == "cpu":
            keep_freed_memory()
        return fit(
            lambda say: make(recipe, world, say),
            recipe,
            folder,
            world=world,
            resume=resume,
            bar=bar,
        )


def _go(run: Run, ears: Ears) -> None:
    """Make steps until the limit; judge and save on the way, and save at the end.

    Raises:
        Stopped: One of the processes heard a signal; all have saved.
    """
    task, config, world, log = run.task, run.config, run.world, run.log
    before, first, start = run.seconds, run.step, time.monotonic()
    batches = task.batches(run.step, world)
    log.begin(run.moment().progress)
    window: list[dict[str, float]] = []
    while run.moment().progress < 1:
        batch = {
            key: value.to(world.device) if isinstance(value, Tensor) else value
            for key, value in next(batches).items()
        }
        broken = batch.pop("broken", 0)
        window.append(run.make_step(batch))
        told = torch.tensor([[broken, ears.heard]], device=world.device)
        brokens, signals = world.gather(told).T.tolist()
        run.broken += sum(brokens)
        seconds = before + time.monotonic() - start
        run.seconds = world.same(seconds) if config.minutes is not None else seconds
        progress = run.moment().progress
        last = progress >= 1
        stop = max(signals) if not last else 0
        pictures = (run.step - first) * config.batch
        log.progress(progress, run.step, pictures, loss=window[-1]["loss"])
        if run.step % config.log_every == 0 or last or stop:
            facts = _mean(window, world)
            clock = {"seconds": run.seconds, "broken": run.broken}
            log.event("step", step=run.step, **clock, **facts)
            window.clear()
        if stop:
            run.save()
            log.event("stop", step=run.step, signal=stop)
            raise Stopped(stop, run.step)
        if _due(run.step, config.evaluate_every) and not last:
            _judge(run)
        if _due(run.step, config.save_every) and not last:
            run.save()
    run.save()


def _finish(run: Run, folder: Path) -> dict[str, Any]:
    """Write the result, judge it a last time, and return the facts of the run."""
    with run.average.in_place():
        run.task.finish(folder, run.world)
    facts = {
        "steps": run.step,
        "samples": run.step * run.config.batch,
        "minutes": run.seconds / 60,
        "broken": run.broken,
        **_judge(run),
    }
    run.log.event("end", **facts)
    return facts


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _mean(window: list[dict[str, float]], world: World) -> dict[str, float]:
    """Return each fact's mean over the steps that have it and over the processes."""
    names = sorted({name for facts in window for name in facts})
    rows = [[facts[n] for facts in window if n in facts] for n in names]
    means = torch.tensor([sum(row) / len(row) for row in rows], dtype=torch.float64)
    return dict(zip(names, world.mean(means.to(world.device)).tolist(), strict=True))


def _judge(run: Run) -> dict[str, float]:
    """Judge the average, log the scores and say them."""
    with run.average.in_place():
        scores = run.task.judge(run.log, run.moment())
    run.log.event("heldout", step=run.step, seconds=run.seconds, **scores)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
    run.log.say(f"{run.seconds / 60:6.1f} min, step {run.step}: {shown}")
    return scores
