"""Which process of how many this is, and what they do together.

A run is one process, or several that `torchrun` started; the training code is the same
and asks a `World`. Sums and gathers are over all processes, in the order of their
ranks, so that what is computed from them is the same on each.
Source: torch.distributed; torchrun's environment variables.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=30)  # the first process may evaluate while others wait


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes; one process gets its tensor back."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over all processes."""
        return self.sum(tensor) / self.size

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, rank after rank, along dimension 0.

        [n, …] of the same shape everywhere → [size · n, …].
        """
        if self.size == 1:
            return tensor
        tensor = tensor.detach().contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()

    def same(self, value: float) -> float:
        """Return the first process's value, everywhere (a clock, a decision)."""
        if self.size == 1:
            return value
        held = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(held, 0)
        return held.item()


@contextmanager
def join(device: str = "cpu") -> Iterator[World]:
    """Be one of torchrun's processes, or the only one, until the block ends.

    Args:
        device: "cpu", "cuda" (each process of a machine takes its own) or "cuda:1".

    Raises:
        ValueError: A device was asked for that is not there, or several processes
            were given one numbered device.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = torch.device(device)
    if place.type == "cuda":
        count = torch.cuda.device_count()
        if size > 1 and place.index is not None:
            raise ValueError(
                f"train: device must be 'cuda' where {size} processes share a machine, "
                f"got {device}"
            )
        if place.index is None:
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if place.index >= count:
            raise ValueError(
                f"train: device must be one of {count} CUDA devices, got {place}"
            )
        torch.cuda.set_device(place)
    if size == 1:
        yield World(device=place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World(rank, size, place)
        dist.barrier()  # nobody leaves while another still reads from it
    finally:
        dist.destroy_process_group()
