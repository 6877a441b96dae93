"""What a run tells: a line per event in log.jsonl, a progress bar, TensorBoard.

The first process writes and speaks, the others are silent. log.jsonl is always there;
the other two are for people. Pictures go to RUN/pictures as PNG files. A disk that is
full stops no training for the sake of its log: lines wait until they can be written,
pictures and TensorBoard are given up, and it is said.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from tokenflow._files import writing
from tokenflow.training.bar import Bar

LOG = "log.jsonl"


class Log:
    """The voice of one run.

    Args:
        folder: RUN, made if need be.
        tensorboard: Write events to RUN/tensorboard too, where it is installed.
        bar: Show a progress bar on stderr; None for "if that is a terminal".
        silent: For all processes but the first: nothing is written or said.

    Raises:
        OSError: The folder cannot be made or written to.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool = False,
        bar: bool | None = None,
        silent: bool = False,
    ) -> None:
        self.folder, self.silent = folder, silent
        self._bar: Bar | None = None
        self._wants_bar = sys.stderr.isatty() if bar is None else bar
        self._board: Any = None  # what makes TensorBoard's writer
        self._writer: Any = None
        self._waiting = b""  # lines that could not be written yet
        if silent:
            return
        _make(folder)
        _end_line(folder / LOG)
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self.say("TensorBoard is not installed; log.jsonl has everything")
            else:
                self._board = SummaryWriter

    def say(self, line: str) -> None:
        """Write one line for people to stderr, above the bar."""
        if self.silent:
            return
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def event(self, name: str, **facts: Any) -> None:
        """Write one line of log.jsonl: {"event": name, facts}, floats to 6 digits.

        Numbers go to TensorBoard as well, under name/fact, where there is a "step".
        """
        if self.silent:
            return
        rounded = {
            key: float(f"{value:.6g}") if isinstance(value, float) else value
            for key, value in facts.items()
        }
        line = json.dumps({"event": name, **rounded}, ensure_ascii=False) + "\n"
        self._write(line.encode())
        with self._unless_full("TensorBoard"):
            if "step" in facts and self._open_board():
                for key, value in facts.items():
                    if isinstance(value, int | float) and key != "step":
                        self._writer.add_scalar(f"{name}/{key}", value, facts["step"])

    def _write(self, line: bytes) -> None:
        """Append a line, and those that wait, to log.jsonl: whole or not at all."""
        lines, path = self._waiting + line, self.folder / LOG
        try:
            append(path, lines)
        except OSError as error:
            if not self._waiting:
                self.say(f"{path} cannot be written, its lines wait ({error})")
            self._waiting = lines
        else:
            self._waiting = b""

    @contextmanager
    def _unless_full(self, what: str) -> Iterator[None]:
        """Let something that is for people fail, and say so."""
        try:
            yield
        except OSError as error:
            self.say(f"{what} cannot be written ({error})")
            if what == "TensorBoard":
                self._board = self._writer = None

    def _open_board(self) -> bool:
        """Say whether TensorBoard is written, from the first number on."""
        if self._board is not None:
            make, self._board = self._board, None
            self._writer = make(str(self.folder / "tensorboard"))
        return self._writer is not None

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Write RUN/pictures/<name>-<step>.png, and show it in TensorBoard."""
        if self.silent:
            return
        path = self.folder / "pictures" / f"{name}-{step:08d}.png"
        with self._unless_full(str(path)), writing(path) as beside:
            picture.save(beside, format="PNG")
        with self._unless_full("TensorBoard"):
            if self._open_board():
                import numpy as np

                pixels = np.asarray(picture.convert("RGB"))
                self._writer.add_image(name, pixels, step, dataformats="HWC")

    def begin(self, share: float) -> None:
        """Show a bar, if it is wanted, of a run of which a share is done."""
        if self._wants_bar and not self.silent:
            self._bar = Bar(share)

    def progress(self, share: float, step: int, pictures: int, **facts: float) -> None:
        """Move the bar: share in [0, 1], with steps, pictures per second and losses.

        `pictures` are those since `begin`.
        """
        if self._bar is not None:
            self._bar.move(share, step, pictures, **facts)

    def close(self) -> None:
        """End the bar and the event file; a folder with nothing in it goes."""
        if self._bar is not None:
            self._bar.close()
        if self._waiting:
            self._write(b"")
        with self._unless_full("TensorBoard"):
            if self._writer is not None:
                self._writer.close()
        with suppress(OSError):  # it holds something
            if not self.silent:
                self.folder.rmdir()


def _make(folder: Path) -> None:
    """Make the folder of a run, or say before any work that it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"train: the run's folder {folder} cannot be made or written to "
            f"({error.strerror})"
        ) from error


def append(path: Path, lines: bytes) -> None:
    """Append to a file; where the disk is full, nothing.

    Raises:
        OSError: It could not be written.
    """
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            written = file.write(lines)
            while written < len(lines):  # the next try says why
                written += file.write(lines[written:])
        except OSError:
            with suppress(OSError):  # what is no file has no length
                file.truncate(before)
            raise


def _end_line(path: Path) -> None:
    """Part what a killed run left of a line from the lines to come."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            whole = file.read() == b"\n"
        if not whole:
            append(path, b"\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a run, in the order they were written.

    A line that a kill cut short is left out. After a resumption the steps between
    the checkpoint and the kill are there twice; see `history`.

    Raises:
        FileNotFoundError: There is no log.
    """
    path = folder / LOG
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; is {folder} a training run?")
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events
