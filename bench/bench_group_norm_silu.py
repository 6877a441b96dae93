"""group_norm_silu beside torch, at the sizes of the decoder. `make bench` runs this.

Peers: the published formulation (norm, then x · sigmoid(x)), and norm with SiLU in
place, each in either memory format. `ours_out` allocates nothing.
"""

import pytest
import torch
import torch.nn.functional as F

import tokenflow_ext as tfx

GROUPS = 32


def published(x, weight, bias):
    normed = F.group_norm(x, GROUPS, weight, bias, 1e-6)
    return normed * torch.sigmoid(normed)


def in_place(x, weight, bias):
    return F.silu(F.group_norm(x, GROUPS, weight, bias, 1e-6), inplace=True)


@pytest.fixture
def case(device, request):
    channels, side = request.param
    g = torch.Generator().manual_seed(0)
    sizes = (1, channels, side, side), (channels,), (channels,)
    return [torch.randn(*size, generator=g).to(device) for size in sizes]


@pytest.mark.parametrize(
    "case", [(512, 32), (256, 64), (256, 128), (128, 256)], indirect=True
)
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("method", ["ours", "ours_out", "published", "in_place"])
def bench_group_norm_silu(timed, method, memory_format, case, device):
    x, weight, bias = case
    timed.benchmark.group = f"group_norm_silu {list(x.shape)} {device.type}"
    expected = in_place(*case)
    if memory_format == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    methods = {
        "ours": lambda: tfx.group_norm_silu(x, weight, bias),
        "ours_out": lambda: tfx.group_norm_silu(x, weight, bias, out=out),
        "published": lambda: published(x, weight, bias),
        "in_place": lambda: in_place(x, weight, bias),
    }
    with torch.no_grad():
        found = timed(methods[method], device)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
