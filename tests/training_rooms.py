"""Threads that stand for the processes of a run, for tests that must be quick."""

import threading
from dataclasses import dataclass

import torch

from tokenflow.training.world import World


class Room:
    """Where the threads meet; `worlds` has one for each of them."""

    def __init__(self, size):
        self.given, self.barrier = [None] * size, threading.Barrier(size, timeout=60)
        self.worlds = [Meeting(rank, size, room=self) for rank in range(size)]

    def exchange(self, rank, tensor):
        self.given[rank] = tensor
        self.barrier.wait()
        all_given = [tensor.clone() for tensor in self.given]
        self.barrier.wait()
        return all_given


@dataclass(frozen=True)
class Meeting(World):
    room: Room | None = None

    def sum(self, tensor):
        return torch.stack(self.room.exchange(self.rank, tensor)).sum(dim=0)

    def gather(self, tensor):
        return torch.cat(self.room.exchange(self.rank, tensor))

    def wait(self):
        self.room.barrier.wait()
