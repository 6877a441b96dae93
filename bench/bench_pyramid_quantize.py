"""pyramid_quantize: cases and methods of `tokenflow.benchmark.ops.pyramid_quantize`."""

OP = "pyramid_quantize"


def bench_pyramid_quantize(timed):
    timed()
