"""A task small enough to train in a test: two parts, one like a discriminator."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tokenflow.training import state as states
from tokenflow.training.loop import fit
from tokenflow.training.optimizers import OptimizerConfig
from tokenflow.training.run import RunConfig
from tokenflow.training.world import join


class Toy:
    """Learns y = sum(x); the second part joins at step 3 and has dropout."""

    def __init__(self, config, *, name="adam", rates=None, kill="never"):
        torch.manual_seed(0)
        first, second = nn.Linear(6, 8), nn.Linear(8, 1)
        self.model = nn.Sequential(first, nn.GELU(), second)
        other = nn.Sequential(nn.Linear(6, 1), nn.Dropout(0.3))
        self.parts = {"model": self.model, "other": other}
        self.kept = {"seen": nn.BatchNorm1d(6, affine=False)}
        optimizer = OptimizerConfig(
            name, 1e-2, rates or {}, warmup=2, schedule="cosine"
        )
        self.optimizers = {"model": optimizer, "other": OptimizerConfig("adamw", 1e-2)}
        self.config, self.kill, self.judged = config, kill, []

    def whole(self, part):
        return (self.model[2].bias,) if part == "model" else ()

    def blocks(self, part):
        return (self.model[0],) if part == "model" else ()

    def averaged(self):
        return "model"

    def batches(self, start, world):
        share = self.config.batch // world.size
        step = start
        while True:
            if self.kill == str(step):
                os.kill(os.getpid(), signal.SIGKILL)
            g = torch.Generator().manual_seed(step)
            x = torch.randn(self.config.batch, 6, generator=g)
            yield {"x": x[world.rank * share :][:share], "broken": int(step == 1)}
            step += 1

    def before_step(self, batch, optimizers, moment):
        self.kept["seen"](batch["x"])

    def loss(self, part, call, batch, moment):
        if part == "other" and moment.step < 3:
            return {}
        wanted = batch["x"].sum(1, keepdim=True)
        return {"loss": F.mse_loss(call(batch["x"]).float(), wanted)}

    def after_step(self, optimizers, moment):
        return {"drawn": moment.rng("drawn").random()}

    def judge(self, log, moment):
        self.judged.append(moment.step)
        x = torch.ones(1, 6)
        return {"answer": self.model(x).item()}

    def finish(self, folder, world):
        pass


@dataclass(frozen=True)
class ToyRecipe:
    run: RunConfig


def train(task, config, folder, **options):
    """Train the task; returns the facts of the run."""
    return fit(lambda say: task, ToyRecipe(config), folder, **options)


def die_while_saving(step):
    """Be killed when the files of a checkpoint are written, but not yet in place."""
    save = states.dcp.save

    def half(tensors, checkpoint_id, **options):
        save(tensors, checkpoint_id=checkpoint_id, **options)
        if checkpoint_id.name == f".step-{step:08d}.part":
            os.kill(os.getpid(), signal.SIGKILL)

    states.dcp.save = half


def main(folder, parallel, name, resume, kill):
    """One process of a run, for torchrun and for runs that are killed.

    `kill`: "never", the number of a step, or "save-" and the step of a checkpoint.
    """
    torch.set_num_threads(1)
    if kill.startswith("save-"):
        die_while_saving(int(kill.removeprefix("save-")))
    config = RunConfig(
        batch=8,
        accumulate=2,
        steps=8,
        save_every=2,
        evaluate_every=4,
        log_every=1,
        parallel=parallel,
        tensorboard=False,
    )
    task = Toy(config, name=name, kill=kill)
    with join() as world:
        train(task, config, Path(folder), world=world, resume=resume == "resume")


if __name__ == "__main__":
    main(*sys.argv[1:])
