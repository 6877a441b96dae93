"""One method of one case in a process of its own.

The order is one JSON object in the first argument. The worker builds the case, judges
one answer, measures memory, warms up, and says so in one line; then it times on
command: a line {"sample": seconds} in, a line with the sample out, until its input
ends. Whatever a library prints goes to stderr.
"""

import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_DISTRIBUTIONS = {
    "faiss": "faiss-cpu",
    "sklearn": "scikit-learn",
    "vector_quantize_pytorch": "vector-quantize-pytorch",
}


class Bench:
    """A method of a case, ready to be timed.

    Args:
        order: op, values, method, device, threads, truth (a file).
    """

    def __init__(self, order: dict[str, Any]) -> None:
        import torch

        from tokenflow.benchmark.method import load

        self.order, self.torch = order, torch
        self.device = torch.device(order["device"])
        self.op = load(order["op"])
        self._settle()

    def _settle(self) -> None:
        """The same number of threads for everybody."""
        self.torch.set_num_threads(self.order["threads"])
        if self.order["method"].startswith("faiss"):
            import faiss

            faiss.omp_set_num_threads(self.order["threads"])

    def make(self, values: dict[str, Any]) -> Any:
        """Return the seeded case."""
        return self.op.make(values, self.device)

    def write_truth(self) -> dict[str, Any]:
        """Compute what is right and leave it in the file that was named."""
        case = self.make(self.order["values"])
        self.torch.save(self.op.truth(case), self.order["truth"])
        return {}

    def get_ready(self) -> dict[str, Any]:
        """Build, judge, measure the memory, warm up; return what is known then."""
        from tokenflow.benchmark import memory

        values, method = self.order["values"], self.op.method[self.order["method"]]
        ceiling = method.kind == "ceiling"
        if not method.compiled and not ceiling:  # libraries load what they need
            method.build(self.make(self.op.TINY))()
        self.case = self.make(values)
        self.call = method.build(self.case)
        if method.compiled or ceiling:
            self.call()
        self.found: Any = None
        start = time.perf_counter()
        extra = memory.peak_extra(self._keep, self.device)
        first = time.perf_counter() - start
        facts = {"first": first, "extra": extra, "version": _version(method.library)}
        facts["amount"] = getattr(self.call, "amount", None)
        if self.order.get("truth"):
            truth = self.torch.load(self.order["truth"])
            facts["verdict"] = self.op.judge(self.found, truth, self.case)
        self.found = None
        gc.collect()
        for _ in range(2 if first < 1 else 0):
            self.call()
        return facts

    def _keep(self) -> None:
        self.found = self.call()

    def sample(self, seconds: float) -> dict[str, Any]:
        """Call for at least that long; return the sample as plain numbers."""
        from tokenflow.benchmark import load

        wait: Callable[[], None] = lambda: None  # noqa: E731
        if self.device.type == "cuda":
            wait = self.torch.cuda.synchronize
        turn, calls = 1, 0
        wait()
        start = load.read()
        while (spent := time.perf_counter() - start.wall) < seconds:
            if calls:  # as many as are missing, so that the clock is seldom read
                turn = math.ceil((seconds - spent) / (spent / calls))
            for _ in range(turn):
                self.call()
            wait()
            calls += turn
        taken = load.between(start, load.read(), calls)
        return {"wall": taken.wall, "calls": taken.calls, "other": taken.other}


def _version(library: str | None) -> str | None:
    if library is None:
        return None
    try:
        return version(_DISTRIBUTIONS.get(library, library))
    except PackageNotFoundError:
        return None


def main() -> None:
    """Serve one order."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    order = json.loads(sys.argv[1])
    bench = Bench(order)
    gradients = bench.torch.enable_grad if getattr(bench.op, "GRADIENTS", 0) else None
    with (gradients or bench.torch.no_grad)():
        if order["method"] == "truth":
            print(json.dumps(bench.write_truth()), file=answers)
            return
        print(json.dumps(bench.get_ready()), file=answers)
        for line in sys.stdin:
            print(json.dumps(bench.sample(json.loads(line)["sample"])), file=answers)


if __name__ == "__main__":
    main()
