"""What bench/gpu_check.sh times runs, small and without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"


def run_small(script, result):
    command = [sys.executable, BENCH / script, result, "--device", "cpu", "--tiny"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(result.read_text()), run.stdout


def test_every_goal_is_timed_and_judged(tmp_path):
    """Every case, every answer right."""
    found, said = run_small("gpu_goals.py", tmp_path / "goals.json")
    cases = found["cases"]
    ops = {case["case"].split()[0] for case in cases}
    assert ops == {
        "quantize",
        "pyramid_quantize",
        "lookup",
        "lookup_backward",
        "upsample_conv",
        "group_norm_silu",
    }
    assert all(case["ours_hot_us"] > 0 for case in cases)
    assert said.count("| agrees |") == sum("peer_hot_us" in c for c in cases) > 0


def test_painting_is_timed_by_batch_and_looks(tmp_path):
    found, said = run_small("gpu_generate.py", tmp_path / "generate.json")
    rows = found["rows"]
    assert [(row["looks"], row["batch"]) for row in rows] == [
        (1, 1),
        (1, 2),
        (3, 1),
        (3, 2),
    ]
    for row in rows:
        assert row["ms_a_picture"] * row["pictures_a_second"] == pytest.approx(1000)
    assert said.count("\n") == 2 + len(rows)


def test_what_does_not_fit_is_left_out(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_generate

    from tokenflow.generation import memory

    model = gpu_generate.build(torch.device("cpu"), tiny=True)
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    row = gpu_generate.measure(model, 2, 1, torch.device("cpu"))
    assert "2 pictures at once" in row["left_out"] and "ms_a_picture" not in row

    def full(*args, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory.\nAnd so on.")

    monkeypatch.setattr(model, "generate", full)
    row = gpu_generate.measure(model, 2, 1, torch.device("cpu"))
    assert row == {"batch": 2, "looks": 1, "left_out": "CUDA out of memory."}
