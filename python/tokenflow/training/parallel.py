"""One part on several processes: torch's DDP or FSDP2, and less memory for activations.

DDP keeps the whole part on each process and averages gradients. FSDP2 spreads
parameters, gradients and optimizer memory; small parameters that must stay whole (the
two books, which the quantizer searches as they are) are kept out of it and their
gradients averaged here.
Source: torch.distributed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from tokenflow.training.world import World

KINDS = ("ddp", "fsdp")
# a discriminator is asked twice a step, between which nothing may change; torch renames
# the option after 2.11
_RENAMED = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
STILL_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if _RENAMED else "broadcast_buffers": False
}


class Part:
    """A trained module as the loop handles it.

    Args:
        module: The module itself; `call` is what a forward goes through.
        kind: "ddp" or "fsdp"; nothing happens where there is one process.
        world: The processes.
        whole: Parameters that FSDP must not spread.
        blocks: Modules that FSDP gathers one at a time.
    """

    def __init__(
        self,
        module: nn.Module,
        kind: str,
        world: World,
        whole: tuple[nn.Parameter, ...] = (),
        blocks: tuple[nn.Module, ...] = (),
    ) -> None:
        self.module, self.world = module, world
        self.call: nn.Module = module
        self.whole: tuple[nn.Parameter, ...] = ()
        if world.size == 1:
            return
        if kind == "fsdp":
            share(module)  # as the other does by itself
            mesh = init_device_mesh(world.device.type, (world.size,))
            self.whole = whole
            for block in (*blocks, module):
                fully_shard(block, mesh=mesh, ignored_params=set(whole))
        elif any(p.requires_grad for p in module.parameters()):
            self.call = DistributedDataParallel(module, **STILL_BUFFERS)

    def release(self) -> None:
        """Let go of DDP's reducer, before the process group is destroyed.

        An exception that leaves the loop, such as `Stopped`, keeps the parts. Were the
        reducer in them the last to let go of the group, it would wait, with Python's
        lock held, for threads that may want the lock.
        """
        self.call = self.module

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Hold back the exchange of gradients until the last micro batch."""
        if isinstance(self.call, DistributedDataParallel) and not last:
            with self.call.no_sync():
                yield
            return
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(last)
        yield

    @torch.no_grad()
    def finish_gradients(self) -> None:
        """Average the gradients of what was kept whole."""
        for parameter in self.whole:
            if parameter.grad is not None:
                parameter.grad.copy_(self.world.mean(parameter.grad))

    @torch.no_grad()
    def share_buffers(self) -> None:
        """Make running statistics the mean of what the processes found."""
        if self.world.size > 1:
            for buffer in self.module.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.world.mean(buffer))


@torch.no_grad()
def share(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    for tensor in (*module.parameters(), *module.buffers()):
        dist.broadcast(tensor, 0)


def as_forward(module: nn.Module, name: str, *args: Any, **options: Any) -> Any:
    """Call a method for which FSDP gathers parameters as it does for a forward."""
    if not isinstance(module, FSDPModule):
        return getattr(module, name)(*args, **options)
    register_fsdp_forward_method(module, name)
    try:
        return getattr(module, name)(*args, **options)
    finally:
        delattr(module, name)  # within a forward it is what it was


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state dict with spread parameters put together.

    Every process must call it.
    """
    return dict(whole_weights(module))


def whole_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the same one by one, for what does not fit on a device whole."""
    for name, value in module.state_dict().items():
        yield name, value.full_tensor() if hasattr(value, "full_tensor") else value


def recompute(blocks: tuple[nn.Module, ...]) -> None:
    """Compute these modules' insides again in backward instead of keeping them."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
