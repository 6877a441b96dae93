"""decoder: cases and methods of `tokenflow.benchmark.ops.decoder`."""

OP = "decoder"


def bench_decoder(timed):
    timed()
