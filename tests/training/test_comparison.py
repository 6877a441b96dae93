"""Runs of a comparison in processes of their own: none outlives the one that asked."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import dataclasses, os, pathlib, sys, time
from tokenflow.training.comparison import Job, make

@dataclasses.dataclass(frozen=True)
class Judged:
    pictures: int = 2

def work(job, device, threads):
    job.folder.mkdir()
    (job.folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    make([Job("a", "", 0, folder / n, None, Judged()) for n in "ab"], work, jobs=2)
"""


def _pids(folder, count):
    for _ in range(600):
        found = [p.read_text() for p in folder.glob("*/pid")]
        if len([text for text in found if text]) == count:
            return [int(text) for text in found]
        time.sleep(0.1)
    raise AssertionError(f"{found} of {count} runs began")


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=str)
def test_runs_stop_when_the_comparison_is_killed(tmp_path, number):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    folder = tmp_path / "runs"
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.Popen([sys.executable, program, folder], env=environment)
    try:
        pids = _pids(folder, 2)
        assert all(_runs(pid) for pid in pids)
    finally:
        whole.send_signal(number)
        whole.wait()
    for _ in range(200):
        if not any(_runs(pid) for pid in pids):
            return
        time.sleep(0.1)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    raise AssertionError("a run went on alone")
