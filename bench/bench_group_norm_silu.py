"""group_norm_silu: cases and methods of `tokenflow.benchmark.ops.group_norm_silu`."""

OP = "group_norm_silu"


def bench_group_norm_silu(timed):
    timed()
