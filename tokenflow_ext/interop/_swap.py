"""How a module of another library gets a faster forward and stays what it is.

The instance's class becomes a subclass of its own class with some methods replaced. So
parameters, buffers, state dict, hooks, `isinstance`, copies and pickles stay as they
were, and calls we do not know go to the original method. No library is imported: a
family recognises its modules by class name and home, or by structure.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger("tokenflow_ext.interop")


@dataclass(frozen=True)
class Family:
    """One kind of module and what takes its place.

    Attributes:
        name: For reports.
        fits: True for a module of this kind, False for another; a text where the kind
            is right and an option keeps it from being replaced.
        methods: What the subclass overrides; each takes the module first.
        trial: Makes the arguments of a trial call. With one, a module is replaced only
            if copies of it, the original and the replaced, return the same on it.
        entry: The method that the trial calls.
    """

    name: str
    fits: Callable[[Any], bool | str]
    methods: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    trial: Callable[[Any], tuple[Any, ...]] | None = None
    entry: str = "forward"


def swap(module: nn.Module, family: Family) -> None:
    """Give `module` the methods of `family`."""
    module.__class__ = _subclass(type(module), family)


def family_of(module: nn.Module) -> Family | None:
    """Return what `module` was given by `swap`."""
    return getattr(type(module), "_tokenflow_family", None)


def original(module: nn.Module) -> Any:
    """Return the class that `module` had before `swap`."""
    return type(module)._tokenflow_original  # type: ignore[attr-defined]


def home(module: nn.Module, package: str, *names: str) -> bool:
    """Whether `module` is of one of these classes of `package`, forward included.

    A subclass that brings a forward of its own is something else.
    """
    for cls in type(module).__mro__:
        inside = cls.__module__ == package or cls.__module__.startswith(f"{package}.")
        if inside and cls.__name__ in names:
            return type(module).forward is cls.forward  # type: ignore[attr-defined]
    return False


def replace_all(
    model: nn.Module, families: Iterable[Family]
) -> tuple[list[str], dict[str, str]]:
    """Swap whatever fits; return the names replaced, and why others were left alone."""
    replaced: list[str] = []
    left: dict[str, str] = {}
    families = list(families)
    for name, module in list(model.named_modules()):
        if family_of(module) is not None:
            continue
        for family in families:
            verdict = family.fits(module)
            if verdict is True and "forward" in vars(module):
                verdict = "its forward was replaced on the instance"
            if verdict is True and family.trial is not None:
                verdict = _trial(module, family)
            if verdict is True:
                swap(module, family)
                replaced.append(name)
                break
            if verdict:
                left[name] = f"{family.name}, {verdict}"
                break
    return replaced, left


_subclasses: dict[tuple[type, str], Any] = {}


def _subclass(cls: type, family: Family) -> Any:
    key = cls, family.name
    if key not in _subclasses:
        methods = {
            **family.methods,
            "__module__": cls.__module__,
            "__doc__": cls.__doc__,
            "__reduce_ex__": _reduce,
            "_tokenflow_family": family,
            "_tokenflow_original": cls,
        }
        _subclasses[key] = type(cls.__name__, (cls,), methods)
    return _subclasses[key]


def _reduce(module: Any, protocol: int) -> tuple[Any, ...]:
    arguments = original(module), family_of(module)
    return _rebuild, arguments, module.__getstate__()


def _rebuild(cls: type, family: Family) -> Any:
    made = _subclass(cls, family)
    return made.__new__(made)


@torch.no_grad()
def _trial(module: nn.Module, family: Family) -> bool | str:
    """Whether the replaced module returns what the original does, on copies."""
    assert family.trial is not None
    if any(tensor.is_meta for tensor in module.state_dict().values()):
        return "its weights are on the meta device, so it cannot be tried"
    before = copy.deepcopy(module).float()
    after = copy.deepcopy(before)
    swap(after, family)
    arguments = family.trial(before)
    tried = 0
    for mode in (False, True):
        before.train(mode)
        after.train(mode)
        with torch.random.fork_rng(_cuda_devices(module)):
            try:
                torch.manual_seed(0)
                expected = getattr(before, family.entry)(*arguments)
            except Exception as error:  # their code; without a result, no verdict
                logger.debug("trial of %s: %s", type(module).__name__, error)
                continue
            try:
                torch.manual_seed(0)
                came = getattr(after, family.entry)(*arguments)
            except Exception as error:  # its parts are not what their names promise
                return f"it works otherwise ({error})"
            if not _alike(expected, came):
                return "its forward computes something else"
            tried += 1
    return True if tried else "its forward cannot be tried"


def _cuda_devices(module: nn.Module) -> list[int]:
    devices = {t.device for t in module.state_dict().values() if t.is_cuda}
    return sorted(device.index for device in devices)


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return (
            isinstance(b, Tensor)
            and (a.shape, a.dtype) == (b.shape, b.dtype)
            and torch.allclose(a, b, rtol=1e-3, atol=1e-5)
        )
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(_alike, a, b))
    return type(a) is type(b) and a == b
