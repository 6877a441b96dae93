"""Being asked to stop: Ctrl-C, and what clusters send before they kill.

The first SIGINT or SIGTERM is taken note of, and the loop ends its step, saves and
stops. Another one does what it would have done without us, but for the first seconds:
a cluster that tells every process, and torchrun, which passes on what it is told, do
not mean to say it twice.
"""

import os
import signal
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOGETHER = 2.0  # seconds in which signals count as one
HEARD = b"\nfinishing this step, then saving; once more to stop at once\n"


class Stopped(KeyboardInterrupt):
    """A run was asked to stop; its checkpoint is written, and it can be resumed.

    Args:
        number: Of the signal.
        step: Of the checkpoint.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"{signal.Signals(number).name} at step {step}")
        self.number, self.step = number, step

    @property
    def status(self) -> int:
        """Exit status as shells give it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


class Ears:
    """Listens for signals while a block runs, in a program's main thread.

    `heard` is the number of the signal that came, 0 before. In another thread, where
    Python hears none, nothing changes.

    Args:
        silent: Do not answer on stderr.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.heard, self.silent = 0, silent
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Ears":
        """Listen."""
        try:
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._hear)
        except ValueError:  # not the main thread
            pass
        return self

    def __exit__(self, *error: object) -> None:
        """Listen no more."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.heard and now - self._since > TOGETHER:
            self.__exit__()
            os.kill(os.getpid(), number)
        if self.heard:
            return
        self.heard, self._since = number, now
        if not self.silent:
            os.write(2, HEARD)  # print may be in the middle of another line
