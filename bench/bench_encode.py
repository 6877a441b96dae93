"""encode: cases and methods of `tokenflow.benchmark.ops.encode`."""

OP = "encode"


def bench_encode(timed):
    timed()
