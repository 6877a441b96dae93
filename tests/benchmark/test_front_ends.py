"""The pytest files in bench/ are the ops of `tokenflow bench`, and run."""

import subprocess
import sys
from pathlib import Path

import pytest

from tokenflow.benchmark import ops

ROOT = Path(__file__).resolve().parents[2]


def test_every_op_has_a_pytest_file():
    files = {
        path.stem.removeprefix("bench_")
        for path in ROOT.glob("bench/bench_*.py")
        if "\nOP = " in path.read_text()
    }
    if not files:
        pytest.skip("not a checkout")
    assert files == {*ops.names()}


def test_a_pytest_file_judges_and_times():
    file = ROOT / "bench" / "bench_code_histogram.py"
    if not file.exists():
        pytest.skip("not a checkout")
    words = ("-q", "-p", "no:cacheprovider", "-k", "cpu and 8170 and not numpy")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, file],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
