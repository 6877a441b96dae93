"""The gradient of group_norm_silu, as pytest runs it."""

OP = "group_norm_silu_backward"


def bench_group_norm_silu_backward(timed):
    timed()
