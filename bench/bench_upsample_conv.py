"""upsample_conv: cases and methods of `tokenflow.benchmark.ops.upsample_conv`."""

OP = "upsample_conv"


def bench_upsample_conv(timed):
    timed()
