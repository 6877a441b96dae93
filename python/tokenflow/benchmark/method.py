"""What is timed: named ways to compute one thing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module, util
from typing import Any

KINDS = ("ours", "published", "peer", "ceiling")
Values = dict[str, Any]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Method:
    """One way to do it.

    Attributes:
        name: Column of the table.
        build: Takes the case that `make` made, does what is not timed (folding weights,
            preparing books, allocating `out`), and returns the call that is.
        kind: "ours", "published" (as the published code does it), or "peer".
        library: Import name of what it needs beside torch.
        compiled: Goes through torch.compile.
        fills: For ours with `out=`: name of the method that allocates instead.
        device: The only kind of device it runs on; any where None.
        fits: Says of a case's values why it cannot be run, or "".
        takes: Bytes it allocates for a case, where that may be more than there is.
    """

    name: str
    build: Callable[[Any], Call]
    kind: str = "peer"
    library: str | None = None
    compiled: bool = False
    fills: str | None = None
    device: str | None = None
    fits: Callable[[Values], str] = field(default=lambda values: "")
    takes: Callable[[Values], float] = field(default=lambda values: 0.0)

    def missing(self) -> str:
        """Name of a library that is not installed, or ""."""
        absent = self.library and util.find_spec(self.library) is None
        return self.library if absent and self.library else ""


class Methods:
    """The methods of one op, in the order in which they were written."""

    def __init__(self) -> None:
        self.by_name: dict[str, Method] = {}

    def __call__(self, name: str, **facts: Any) -> Callable[..., Callable[..., Call]]:
        """Return a decorator that registers a `build` function under `name`."""

        def register(build: Callable[..., Call]) -> Callable[..., Call]:
            if name in self.by_name:
                raise ValueError(f"there are two methods named {name!r}")
            self.by_name[name] = Method(name, build, **facts)
            return build

        return register

    def __iter__(self) -> Iterator[Method]:
        """Yield every method."""
        return iter(self.by_name.values())

    def __getitem__(self, name: str) -> Method:
        """The method of that name."""
        return self.by_name[name]

    def __contains__(self, name: str) -> bool:
        """Whether there is one of that name."""
        return name in self.by_name


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` of a function, for one shape."""
    import torch

    return torch.compile(function, dynamic=False)


def load(op: str) -> Any:
    """The module of an op; see `ops` for what is in one."""
    if op == "ceilings":
        return import_module("tokenflow.benchmark.ceilings")
    return import_module(f"tokenflow.benchmark.ops.{op}")
