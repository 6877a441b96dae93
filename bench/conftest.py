"""Cases and methods of `tokenflow bench`, under pytest-benchmark, in one process.

A file names its op in OP and takes `values` and `method`; what those are is read from
`tokenflow.benchmark.ops`. Select with -k: a case (1x128x128-256), a method, cpu or
cuda; what --collect-only prints.
"""

import re

import pytest
import torch

from tokenflow.benchmark.harness import obstacle
from tokenflow.benchmark.method import load

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def pytest_generate_tests(metafunc):
    if "method" not in metafunc.fixturenames:
        return  # no op: a file that times something of its own
    try:
        op = load(metafunc.module.OP)
        cases, methods = op.CASES, [*op.method]
    except ImportError:  # the models' libraries, where there are only the ops
        cases, methods = [], []
    names = [plain(op.LABEL.format(**values)) for values in cases]
    metafunc.parametrize("values", cases, ids=names, scope="module")
    metafunc.parametrize("method", methods, ids=[plain(m.name) for m in methods])


def plain(label):
    """The label in letters that -k understands: 1x128x128-256."""
    return re.sub(r"\W+", "-", label.replace("×", "x").replace("²", "")).strip("-")


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(scope="module")
def truth(request, values, device):
    op = load(request.module.OP)
    with torch.no_grad():
        return op.truth(op.make(values, device))


@pytest.fixture
def timed(request, benchmark, values, method, device):
    """timed() judges one answer, then measures by medians, synchronised on a GPU."""
    op = load(request.module.OP)
    benchmark.group = f"{request.module.OP} {op.LABEL.format(**values)} {device.type}"
    if reason := obstacle(method, values, device.type):
        pytest.skip(reason)

    def measure():
        right = request.getfixturevalue("truth")
        with torch.set_grad_enabled(getattr(op, "GRADIENTS", False)):
            case = op.make(values, device)
            run = method.build(case)
            verdict = op.judge(run(), right, case)
            benchmark.extra_info["verdict"] = verdict
            assert verdict["right"], verdict

            def call():
                out = run()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                return out

            benchmark.pedantic(call, rounds=7, warmup_rounds=2)
        if method.kind == "ours" and getattr(op, "EXACT", True):
            assert not verdict.get("mismatches"), verdict

    return measure
