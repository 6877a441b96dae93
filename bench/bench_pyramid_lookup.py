"""pyramid_lookup: cases and methods of `tokenflow.benchmark.ops.pyramid_lookup`."""

OP = "pyramid_lookup"


def bench_pyramid_lookup(timed):
    timed()
