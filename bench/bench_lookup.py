"""lookup: cases and methods of `tokenflow.benchmark.ops.lookup`."""

OP = "lookup"


def bench_lookup(timed):
    timed()
