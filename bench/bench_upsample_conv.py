"""upsample_conv beside torch, at the sizes of the decoder. `make bench` runs this file.

Peers: the two steps in either memory format, and the same map as one transposed
convolution of stride 2, whose 4×4 weights are folded outside of the timing.
"""

import pytest
import torch
import torch.nn.functional as F

import tokenflow_ext as tfx


def two_steps(x, weight, bias):
    return F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)


def folded(weight):
    fold = weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    return fold @ weight.transpose(0, 1) @ fold.T


def transposed(x, kernel, bias):
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


@pytest.fixture
def case(device, request):
    channels, side = request.param
    g = torch.Generator().manual_seed(0)
    sizes = (1, channels, side, side), (channels, channels, 3, 3), (channels,)
    return [
        (torch.randn(*size, generator=g) / size[-1]).to(device, torch.float32)
        for size in sizes
    ]


@pytest.mark.parametrize("case", [(512, 16), (256, 32), (128, 128)], indirect=True)
@pytest.mark.parametrize(
    "method",
    ["ours", "ours_last", "eager", "eager_last", "transposed", "transposed_last"],
)
def bench_upsample_conv(timed, method, case, device):
    x, weight, bias = case
    timed.benchmark.group = f"upsample_conv {list(x.shape)} {device.type}"
    kernel = folded(weight)
    if method.endswith("_last"):
        x, weight, kernel = (
            t.contiguous(memory_format=torch.channels_last) for t in (x, weight, kernel)
        )
    name = method.removesuffix("_last")
    methods = {
        "ours": lambda: tfx.upsample_conv(x, weight, bias),
        "eager": lambda: two_steps(x, weight, bias),
        "transposed": lambda: transposed(x, kernel, bias),
    }
    with torch.no_grad():
        found = timed(methods[name], device)
        torch.testing.assert_close(found, two_steps(*case), rtol=1e-3, atol=1e-3)
