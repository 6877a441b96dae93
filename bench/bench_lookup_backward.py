"""lookup_backward: cases and methods of `tokenflow.benchmark.ops.lookup_backward`."""

OP = "lookup_backward"


def bench_lookup_backward(timed):
    timed()
