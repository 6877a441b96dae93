"""What a run's log says happened, each step once.

After a resumption the steps between the checkpoint and the kill are in the log twice;
the later ones count, and what was judged in the lost steps is left out with them.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenflow.training.log import read

Event = dict[str, Any]


@dataclass
class History:
    """A run so far; see `loop` for what each event holds."""

    start: Event = field(default_factory=dict)  # seed, processes, task, recipe
    steps: list[Event] = field(default_factory=list)
    heldout: list[Event] = field(default_factory=list)
    resumptions: list[int] = field(default_factory=list)  # steps gone on from
    end: Event | None = None  # None while it runs, or where it was cut short

    def last(self, name: str, default: Any = None) -> Any:
        """Return the latest value of a step's fact."""
        found = (e[name] for e in reversed(self.steps) if e.get(name) is not None)
        return next(found, default)

    def curve(self, name: str, events: list[Event] | None = None) -> list[tuple]:
        """Return (step, value) wherever the fact was logged."""
        events = self.steps if events is None else events
        return [(e["step"], e[name]) for e in events if e.get(name) is not None]

    def speed(self, batch: int) -> list[tuple[float, float]]:
        """Return (step, samples per second since the line before)."""
        zero = {"step": 0, "seconds": 0.0}
        found = []
        for a, b in zip([zero, *self.steps], self.steps, strict=False):
            if b["seconds"] > a["seconds"]:
                many = (b["step"] - a["step"]) * batch
                found.append((b["step"], many / (b["seconds"] - a["seconds"])))
        return found


def history(folder: Path) -> History:
    """Read a run's log.

    Raises:
        FileNotFoundError: There is none.
    """
    found = History()
    for event in read(folder):
        kind = event.get("event")
        if kind == "start":
            found = History(start=event)
        elif kind == "resume":
            found.start |= {k: event[k] for k in ("recipe", "processes") if k in event}
            at = event["step"]
            found.steps = [e for e in found.steps if e["step"] <= at]
            found.heldout = [e for e in found.heldout if e["step"] <= at]
            found.resumptions.append(at)
            found.end = None
        elif kind == "step":
            found.steps.append(event)
        elif kind == "heldout":
            kept = [e for e in found.heldout if e["step"] != event["step"]]
            found.heldout = [*kept, event]
        elif kind == "end":
            found.end = event
    return found
