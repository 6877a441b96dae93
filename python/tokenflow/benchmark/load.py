"""What else the machine did during a sample, from Linux's own counters."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

LIMIT = 0.10  # other load, as a share of the sample's wall clock
_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Reading:
    """Seconds since some start: wall clock, CPU time of all, of this process."""

    wall: float
    busy: float  # of the machine, all cores, what a hypervisor took included
    own: float


@dataclass(frozen=True)
class Sample:
    """Some calls in a row, timed as one."""

    wall: float
    calls: int
    other: float  # CPU seconds of everybody else meanwhile

    @property
    def seconds(self) -> float:
        """Of one call."""
        return self.wall / self.calls

    @property
    def clean(self) -> bool:
        """Whether others took at most a tenth of a core."""
        return self.other <= LIMIT * self.wall


def busy_seconds(stat: str, ticks: int) -> float:
    """CPU seconds in the first line of /proc/stat: all but idle and waiting."""
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, stat.split()[1:9])
    return (user + nice + system + irq + soft + steal) / ticks


def measurable() -> bool:
    """Whether this system tells what others do; elsewhere every sample counts."""
    return _STAT.exists()


def read() -> Reading:
    """Read the clocks now."""
    busy = 0.0
    if measurable():
        with _STAT.open() as file:
            busy = busy_seconds(file.readline(), os.sysconf("SC_CLK_TCK"))
    return Reading(time.perf_counter(), busy, time.process_time())


def between(start: Reading, end: Reading, calls: int) -> Sample:
    """Return the sample that two readings enclose."""
    other = max(0.0, (end.busy - start.busy) - (end.own - start.own))
    return Sample(end.wall - start.wall, calls, other)
