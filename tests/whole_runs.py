"""Whole runs of a tiny task in processes of their own, hurt where one likes.

The processes are forked from one that has imported everything, so a run that is killed
and resumed costs what its steps cost. Several processes talk through gloo.
"""

import gc
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.nn.parallel import DistributedDataParallel

from tokenflow.training import codebook, loop
from tokenflow.training import state as states
from tokenflow.training import tokenizer as tokenizers
from tokenflow.training.config import build
from tokenflow.training.history import history
from tokenflow.training.teacher import TeacherRecipe, train_teacher
from tokenflow.training.tokenizer import TokenizerRecipe, train_tokenizer

PRELOADED = [  # it does not find this file
    "tokenflow.training.teacher",
    "torch.distributed.checkpoint",
    "pytest",
]
TRAIN = {
    "tokenizer": (TokenizerRecipe, train_tokenizer),
    "teacher": (TeacherRecipe, train_teacher),
}
AFTER = {  # a call, when it is done
    "start": (codebook.CodebookHealth, "start"),  # the books are set
    "step": (codebook.CodebookHealth, "after_step"),  # all of a tokenizer's step
    "average": (loop.Average, "update"),  # all of a step of any task
    "judge": (tokenizers.TokenizerTask, "judge"),
    "finish": (tokenizers.TokenizerTask, "finish"),
}
BEFORE = {
    "place": (states.Checkpoints, "_place"),  # files are written, but not in place
    "name": (states, "writing"),  # they are in place, but not the current ones
    "full": (states.Checkpoints, "save"),
}
SMALL = 1 << 16  # the largest file where the disk is "full"


def befall(hurt):
    """ "place-n": at the n-th call there in this process, from 1, it is killed.

    At "full" no file may become large from there on; writing fails as on a full disk.
    """
    place, number = hurt.split("-")
    owner, name = {**AFTER, **BEFORE}[place]
    plain, calls = getattr(owner, name), []

    def strike():
        calls.append(1)
        if len(calls) == int(number):
            if place == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL))
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    def call(*args, **options):
        if place in BEFORE:
            strike()
        result = plain(*args, **options)
        if place in AFTER:
            strike()
        return result

    setattr(owner, name, call)


def plain_steps(module, config):
    """Gradient descent in place of an optimizer that divides by the gradient."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = {}
    for parameter in trained:  # spread ones and others may not share a group
        groups.setdefault(type(parameter), []).append(parameter)
    return torch.optim.SGD(
        [{"params": group, "share": 1.0} for group in groups.values()], lr=1.0
    )


def work(task, sections, folder, resume, hurt, plain, environment):
    """One process of a run."""
    os.environ.update(environment)
    os.setpgrp()  # a group of its own, as torchrun gives it
    torch.set_num_threads(1)
    log = open(f"{folder}.{environment['RANK']}.txt", "a")  # noqa: SIM115
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    if hurt:
        befall(hurt)
    if plain:
        loop.build_optimizer = plain_steps
    kind, train = TRAIN[task]
    try:
        train(build(kind, sections), Path(folder), resume=resume, bar=False)
    except loop.Stopped as stopped:  # it keeps all that its frames name
        reducers = [o for o in gc.get_objects() if type(o) is DistributedDataParallel]
        assert not reducers, "they would destroy the process group and wait"
        sys.exit(stopped.status)


def begin(
    sections,
    folder,
    *,
    count=1,
    resume=False,
    hurt="",
    rank=0,
    plain=False,
    task="tokenizer",
):
    """Start the processes of a run; what hurts befalls the one of that rank."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for own in range(count):
        environment = {
            "RANK": str(own),
            "LOCAL_RANK": str(own),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
        }
        here = hurt if own == rank else ""
        words = task, sections, str(folder), resume, here, plain, environment
        processes.append(server.Process(target=work, args=words))
        processes[-1].start()
    return processes


def end(processes, seconds=240):
    """Wait for all; when one fails the others are ended, as torchrun does.

    Returns the exit status of each.
    """
    until = time.monotonic() + seconds
    while any(p.is_alive() for p in processes):
        if any(p.exitcode for p in processes) or time.monotonic() > until:
            for process in processes:
                process.join(20)  # they notice by themselves
                process.kill()
                process.join()
        time.sleep(0.01)
    return [p.exitcode for p in processes]


def run(sections, folder, **options):
    """Run to the end, or to where it is hurt; returns the exit status of each."""
    return end(begin(sections, folder, **options))


def current(folder):
    """The step of a run's current checkpoint, None where there is none."""
    path = Path(folder) / "checkpoints" / "current"
    if not path.is_file():
        return None
    return int(path.read_text().strip().removeprefix("step-"))


def read(folder):
    """Every tensor of a run's current checkpoint, and its step."""
    path = Path(folder) / "checkpoints" / f"step-{current(folder):08d}"
    reader = dcp.FileSystemReader(path)
    tensors = {
        name: torch.zeros(tuple(entry.size), dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    facts, _ = states.as_facts(tensors.pop("facts"))
    return facts["step"], tensors


def said(folder):
    """What the processes of a run wrote, for a test that fails."""
    folder = Path(folder)
    return "\n".join(
        p.read_text() for p in sorted(folder.parent.glob(f"{folder.name}.*.txt"))
    )


def assert_same(one, other):
    """Two runs ended alike, bit for bit: checkpoints, models and what the log says."""
    (step, tensors), (other_step, others) = read(one), read(other)
    assert step == other_step and tensors.keys() == others.keys()
    different = [n for n, v in tensors.items() if not torch.equal(v, others[n])]
    assert not different
    models = [sorted((run / "model").rglob("*.safetensors")) for run in (one, other)]
    assert models[0] and len(models[0]) == len(models[1])
    for path, there in zip(*models, strict=True):
        assert path.read_bytes() == there.read_bytes()
    assert told(one) == told(other)


def told(folder):
    """The history of a run, without its clock."""
    found = history(folder)
    assert found.end is not None
    events = [*found.steps, *found.heldout, found.end]
    clock = ("seconds", "minutes")
    return [{k: v for k, v in event.items() if k not in clock} for event in events]
