"""generate: cases and methods of `tokenflow.benchmark.ops.generate`."""

OP = "generate"


def bench_generate(timed):
    timed()
