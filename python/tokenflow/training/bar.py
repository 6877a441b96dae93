"""The progress bar of a run: how much is done, how fast, how long it still takes.

Speed and time to go are those of this process, whatever a run did before it was
resumed: speed over the latest minute, time to go from all it has done, pauses for
judging and saving included.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

EVERY = 0.5  # seconds between two drawings at least
WINDOW = 60.0  # seconds that the speed looks back on


class Bar:
    """A bar at the bottom of a terminal.

    Args:
        share: How much of the run is done already, in [0, 1].
        file: Where it is drawn.
        clock: Seconds that never fall.
    """

    def __init__(
        self,
        share: float = 0.0,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from tqdm import tqdm

        self._clock, self._start, self._share = clock, clock(), share
        self._drawn = -EVERY + self._start
        self._seen: deque[tuple[float, int]] = deque([(self._start, 0)])
        self._bar: Any = tqdm(
            total=1.0,
            initial=share,
            file=file or sys.stderr,
            dynamic_ncols=True,
            bar_format="{percentage:5.1f}% |{bar}|{postfix}",
            mininterval=0,
            miniters=0,
        )

    def move(self, share: float, step: int, pictures: int, **facts: float) -> None:
        """Draw where the run is, unless that was done a moment ago.

        Args:
            share: In [0, 1]; 1 is always drawn.
            step: Steps made.
            pictures: Those learned from since the bar was made.
            facts: Shown behind.
        """
        now = self._clock()
        if share < 1 and now - self._drawn < EVERY:
            return
        self._drawn = now
        self._seen.append((now, pictures))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW:
            self._seen.popleft()
        shown = [f"step {step}", *self._speed(), *self._to_go(share, now)]
        shown += [f"{name} {value:.4g}" for name, value in facts.items()]
        self._bar.set_postfix_str(", ".join(shown), refresh=False)
        self._bar.n = share
        self._bar.refresh()

    def _speed(self) -> list[str]:
        (before, some), (now, all_) = self._seen[0], self._seen[-1]
        return [f"{(all_ - some) / (now - before):.3g} img/s"] if now > before else []

    def _to_go(self, share: float, now: float) -> list[str]:
        done, seconds = share - self._share, now - self._start
        if done <= 0:
            return []
        minutes, left = divmod(round(seconds / done * (1 - share)), 60)
        hours, minutes = divmod(minutes, 60)
        text = f"{hours}:{minutes:02}" if hours else f"{minutes:02}"
        return [f"{text}:{left:02} to go"]

    def write(self, line: str) -> None:
        """Write a line above the bar."""
        self._bar.write(line, file=self._bar.fp)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
