"""quantize: cases and methods of `tokenflow.benchmark.ops.quantize`."""

OP = "quantize"


def bench_quantize(timed):
    timed()
