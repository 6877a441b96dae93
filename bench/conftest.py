"""Fixtures of the benchmarks."""

import pytest
import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture
def timed(benchmark):
    """timed(function) measures it by medians, synchronised on a GPU."""

    def measure(function, device):
        def call():
            out = function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return out

        return benchmark.pedantic(call, rounds=7, warmup_rounds=2)

    measure.benchmark = benchmark
    return measure
