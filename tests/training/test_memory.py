"""A process that trains keeps the memory it frees."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from tokenflow.training.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("not glibc"); sys.exit()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(30):
    if i == 20:
        before = faults()
    torch.ones(12_000_000)  # past the largest threshold that adapts itself
print(faults() - before)
"""


def _faults(how):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_same_memory_is_not_asked_for_twice():
    kept = _faults("keep")
    if kept == "not glibc":
        pytest.skip("another C library than glibc")
    assert int(kept) * 5 < int(_faults("as it comes"))
