"""Checkpoints: everything a run needs to go on as if it had never stopped.

A checkpoint is a folder that torch.distributed.checkpoint writes: trained parts,
optimizers, the average, codebook health, the loss scale, the counters, and for every
process the state of its random generators. It is written beside its place and moved
there when it is whole, and only then does the file `current` name it; a run that is
killed, or finds the disk full, at any moment leaves the one before. Reading asks for
every tensor and refuses a checkpoint that lacks one or holds another.

    RUN/checkpoints/current              the name of the newest whole one
    RUN/checkpoints/step-00001000/       one file per process, and an index

Source: torch.distributed.checkpoint. Its index is a pickle: read only checkpoints
that you made or trust as you trust a program.
"""

import json
import os
import random
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException

from tokenflow._files import writing
from tokenflow.training.world import World

Tensors = dict[str, Tensor]
FOLDER = "checkpoints"  # of RUN


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: RUN/checkpoints.
        world: All its processes save and load together.
        keep: How many of the newest stay on the disk.
    """

    def __init__(self, folder: Path, world: World, keep: int = 2) -> None:
        self.folder, self.world, self.keep = folder, world, keep

    def current(self) -> Path | None:
        """Return the newest whole checkpoint, None where there is none.

        Raises:
            FileNotFoundError: `current` names one that is gone.
        """
        name = self.folder / "current"
        if not name.is_file():
            # killed before the first one was named, or it was lost: not a fresh start
            return max(self.folder.glob("step-*"), default=None)
        path = self.folder / name.read_text(encoding="utf-8").strip()
        if not path.is_dir():
            raise FileNotFoundError(f"train: {name} names {path}, which is not there")
        return path

    def save(self, step: int, tensors: Tensors) -> Path:
        """Write a checkpoint whole or not at all, and make it the current one.

        Args:
            step: Steps that were made.
            tensors: By name; spread ones (DTensor) are written by their owners, equal
                names on several processes once.

        Raises:
            OSError: It could not be written; the one before is still the current one.
        """
        path = self.folder / f"step-{step:08d}"
        beside = self.folder / f".{path.name}.part"
        with self._together(path):
            if self.world.first:
                self._make_room()
        with self._together(path), _quiet():
            dcp.save(
                tensors,
                checkpoint_id=beside,
                storage_writer=_Writer(beside),
                no_dist=self.world.size == 1,
            )
        with self._together(path):
            if self.world.first:
                self._place(beside, path)
        return path

    @contextmanager
    def _together(self, path: Path) -> Iterator[None]:
        """Let a part of saving succeed on all processes, or fail on all."""
        reason = None
        try:
            yield
        except (Exception, CheckpointException) as error:
            reason = error
        failed = torch.tensor(float(reason is not None), device=self.world.device)
        if not self.world.sum(failed):
            return
        free = _free(self.folder) / 2**20
        self.world.wait()
        if self.world.first:
            with suppress(OSError):
                self._make_room()
        raise OSError(
            f"train: could not write {path}: {_reason(reason)}, with {free:.1f} "
            "MiB of the disk free; the checkpoint before it is whole"
        ) from reason

    def _make_room(self) -> None:
        """Remove what runs that were killed, or failed to save, have left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".*.part"):
            shutil.rmtree(left)

    def _place(self, beside: Path, path: Path) -> None:
        """Make what was written a checkpoint, the current one, and remove old ones."""
        if path.exists():
            os.replace(path, self.folder / f".{path.name}.old.part")
        os.replace(beside, path)
        with writing(self.folder / "current") as text:
            text.write_text(path.name + "\n", encoding="utf-8")
        names = sorted(p.name for p in self.folder.glob("step-*"))
        # a later one was not the current one when the run went on from an earlier
        later = [name for name in names if name > path.name]
        before = [name for name in names if name <= path.name]
        for name in (f".{path.name}.old.part", *later, *before[: -self.keep]):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def load(self, path: Path, tensors: Tensors) -> None:
        """Fill these tensors, in place, from a checkpoint that holds exactly them.

        Random states of more or fewer processes may be there.

        Raises:
            ValueError: The checkpoint lacks a tensor, holds one that is not asked for,
                or one of another shape; the first names are in the message.
            OSError: A file of it is missing or damaged.
        """
        held = self.index(path)
        lacks = sorted(tensors.keys() - held.keys())
        more = sorted(n for n in held.keys() - tensors.keys() if not _is_random(n))
        other = sorted(
            name
            for name, value in tensors.items()
            if name in held and tuple(held[name].size) != tuple(value.shape)
        )
        for names, what in (
            (lacks, "lacks"),
            (more, "holds, and this run has not,"),
            (other, "holds in another shape"),
        ):
            if names:
                raise ValueError(
                    f"train: {path} must hold this run's state; it {what} "
                    f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
                )
        try:
            with _quiet():
                dcp.load(tensors, checkpoint_id=path, no_dist=self.world.size == 1)
        except (Exception, CheckpointException) as error:
            raise OSError(f"train: could not read {path} ({_reason(error)})") from error

    def index(self, path: Path) -> dict[str, Any]:
        """Return what a checkpoint holds: name → torch's metadata, with `size`."""
        try:
            return dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        except (Exception, CheckpointException) as error:
            raise OSError(f"train: could not read {path} ({_reason(error)})") from error


class _Writer(dcp.FileSystemWriter):
    """Tells the cause: of what fails, the other processes hear no more than that."""

    def write_data(self, *args: Any) -> Any:
        """Write this process's share of the tensors."""
        try:
            return super().write_data(*args)
        except Exception as error:
            raise OSError(_reason(error)) from error


def _reason(error: BaseException | None) -> str:
    """Return what went wrong, of what torch makes of it, in a line."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    deeper = error
    while deeper is not None:  # a full disk is hidden by what follows from it
        if isinstance(deeper, OSError):
            error = deeper
        deeper = deeper.__cause__ or deeper.__context__
    return str(error).strip().split("\n", 1)[0] if error else "see the first process"


def _free(folder: Path) -> int:
    """Return how many bytes are free on the disk where a folder is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from remarking that a single process saves alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)
        yield


def optimizer_tensors(
    name: str, optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor]
) -> Tensors:
    """Return the optimizer's memory, "optimizer/<part>/<parameter>/<what>"."""
    return {
        f"optimizer/{name}/{parameter}/{what}": value
        for parameter, tensor in parameters.items()
        for what, value in optimizer.state.get(tensor, {}).items()
    }


def remember(
    name: str,
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, Tensor],
    held: dict[str, Any],
) -> None:
    """Make room for the memory that a checkpoint holds, so that `load` fills it."""
    for parameter, tensor in parameters.items():
        start = f"optimizer/{name}/{parameter}/"
        memory = {}
        for key in held:
            if key.startswith(start) and "/" not in key[len(start) :]:
                size = tuple(held[key].size)
                memory[key[len(start) :]] = (
                    torch.zeros_like(tensor)
                    if size == tuple(tensor.shape)
                    else torch.zeros(size, dtype=held[key].properties.dtype)
                )
        if memory:
            optimizer.state[tensor] = memory


def memory_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return what an optimizer remembers: [kind, its words, how many tensors]."""
    memories = optimizer.state.values()
    words = sorted({what for memory in memories for what in memory})
    return [type(optimizer).__name__, words, sum(map(len, memories))]


def check_memory(
    path: Path, name: str, optimizer: torch.optim.Optimizer, wanted: list[Any]
) -> None:
    """Hold what an optimizer now remembers against what it did when it was saved.

    Raises:
        ValueError: It is another kind, or has not all of its memory back.
    """
    kind, words, many = memory_of(optimizer)
    families = {"AdamW": "Adam"}  # they remember alike
    if families.get(kind, kind) != families.get(wanted[0], wanted[0]):
        raise ValueError(
            f"train: {path} must hold the memory of the {name}'s optimizer, {kind}; "
            f"it is of a run with {wanted[0]}"
        )
    if [words, many] != wanted[1:]:
        raise ValueError(
            f"train: {path} must hold all that the {name}'s optimizer remembers, "
            f"{wanted[2]} tensors of {wanted[1]}; it gave back {many} of {words}"
        )


def as_tensor(facts: Any, size: int = 4096) -> Tensor:
    """Return what JSON can hold as bytes in a uint8 tensor of a fixed size."""
    text = json.dumps(facts).encode()
    if len(text) > size:
        raise ValueError(f"train: facts must fit {size} bytes, got {len(text)}")
    return torch.tensor(list(text.ljust(size)), dtype=torch.uint8)


def as_facts(tensor: Tensor) -> Any:
    """Return what `as_tensor` was given."""
    return json.loads(bytes(tensor.tolist()).decode())


def seed_random(seed: int, world: World) -> None:
    """Seed this process's generators, each process's differently."""
    random.seed(f"{seed}/{world.rank}")
    torch.manual_seed(random.getrandbits(63))


def random_tensors(world: World) -> Tensors:
    """Return the states of this process's random generators."""
    start = f"random/{world.rank}"
    kind, words, gauss = random.getstate()
    found = {
        f"{start}/torch": torch.get_rng_state(),
        f"{start}/python": as_tensor([kind, words, gauss], 8192),
    }
    if world.device.type == "cuda":
        found[f"{start}/cuda"] = torch.cuda.get_rng_state(world.device)
    return found


def set_random(tensors: Tensors, world: World) -> None:
    """Set the generators to the states in `tensors`, as `random_tensors` names them."""
    start = f"random/{world.rank}"
    torch.set_rng_state(tensors[f"{start}/torch"])
    kind, words, gauss = as_facts(tensors[f"{start}/python"])
    random.setstate((kind, tuple(words), gauss))
    if f"{start}/cuda" in tensors:
        torch.cuda.set_rng_state(tensors[f"{start}/cuda"], world.device)


def keep_random(tensors: Tensors, held: dict[str, Any]) -> Tensors:
    """Leave out random states the checkpoint has not, where the run has grown.

    Those of a process that it knows stay, so that `load` refuses it if they are gone,
    but for a device's: a run may go on elsewhere.
    """
    known = {_of(n) for n in held if _is_random(n)} or {0}
    new = [n for n in tensors if _is_random(n) and _of(n) > max(known)]
    if new:
        warnings.warn(
            "train: the checkpoint is of fewer processes; the new ones keep their own "
            "random states",
            stacklevel=2,
        )
    device = [n for n in tensors if _is_random(n) and n.endswith("/cuda")]
    left_out = {*new, *(n for n in device if n not in held)}
    return {n: v for n, v in tensors.items() if n not in left_out}


def _of(random_state: str) -> int:
    """Return whose it is, of the name of a random state."""
    return int(random_state.split("/")[1])


def _is_random(name: str) -> bool:
    return name.startswith("random/")
