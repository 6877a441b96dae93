"""nearest: cases and methods of `tokenflow.benchmark.ops.nearest`."""

OP = "nearest"


def bench_nearest(timed):
    timed()
