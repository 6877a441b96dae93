"""code_histogram: cases and methods of `tokenflow.benchmark.ops.code_histogram`."""

OP = "code_histogram"


def bench_code_histogram(timed):
    timed()
