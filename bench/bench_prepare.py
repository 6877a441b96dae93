"""prepare: cases and methods of `tokenflow.benchmark.ops.prepare`."""

OP = "prepare"


def bench_prepare(timed):
    timed()
