"""upsample_conv errs no more than torch's two steps, in every layout and dtype."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import tokenflow_ext as tfx
from tokenflow_ext import _info, reference
from tokenflow_ext.nn import UpsampleConv
from tokenflow_ext.ops import upsample_conv as room

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = [torch.contiguous_format, torch.channels_last]
# Around one pixel, odd and even lengths, a tile of 6 or 12 cells, a block of 32 output
# channels, a slice of 128 input channels, a chain of 32.
SHAPES = [  # B, C, Co, H, W
    (1, 1, 1, 1, 1),
    (2, 3, 5, 2, 7),
    (1, 64, 64, 9, 12),
    (2, 33, 70, 13, 25),
    (1, 130, 17, 1, 6),
    (3, 16, 32, 17, 1),
    (1, 200, 100, 20, 34),
]


def make_case(b, c, co, h, w, *, dtype=torch.float32, device="cpu", seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(b, c, h, w, generator=g)
    weight = torch.randn(co, c, 3, 3, generator=g) / (9 * c) ** 0.5
    bias = torch.randn(co, generator=g)
    return [t.to(device, dtype) for t in (x, weight, bias)]


def eager(x, weight, bias=None):
    return F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)


def exact(case):
    return reference.upsample_conv(*[t.double() for t in case])


def worst_error(found, case):
    return (found.double() - exact(case)).abs().max().item()


def plain(*case):
    return torch.ops.tokenflow_ext.upsample_conv_plain(*case)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_upsample_conv_errs_no_more_than_eager(
    shape, dtype, memory_format, device, isa
):
    case = make_case(*shape, dtype=dtype, device=device)
    case[0] = case[0].contiguous(memory_format=memory_format)
    found = tfx.upsample_conv(*case)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=memory_format)
    assert worst_error(found, case) <= 2 * worst_error(eager(*case), case) + 1e-6


@pytest.mark.parametrize("channels", [128, 512])
def test_many_channels_err_less_than_eager(channels, isa):
    case = make_case(1, channels, 64, 16, 16)

    def error(found):
        return (found.double() - exact(case)).square().mean().sqrt().item()

    assert error(tfx.upsample_conv(*case)) <= error(eager(*case))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_body_of_the_cuda_kernel_errs_no_more_than_eager(
    shape, dtype, memory_format, device
):
    case = make_case(*shape, dtype=dtype, device=device)
    case[0] = case[0].contiguous(memory_format=memory_format)
    assert worst_error(plain(*case), case) <= 2 * worst_error(eager(*case), case) + 1e-6


def test_one_pixel_meets_the_taps_by_hand(device):
    # One pixel of value 2 becomes a 2×2 map of 2; output (0, 0) sees it through the
    # taps (1, 1), (1, 2), (2, 1), (2, 2) alone, the others through their mirror images.
    x = torch.full((1, 1, 1, 1), 2.0, device=device)
    weight = torch.arange(1.0, 10.0, device=device).reshape(1, 1, 3, 3)
    found = tfx.upsample_conv(x, weight, torch.tensor([0.5], device=device))
    assert found.tolist() == [[[[56.5, 48.5], [32.5, 24.5]]]]


@pytest.mark.parametrize("name", ["upsample_0", "upsample_1"])
def test_recorded_upsampling_is_reproduced(name, golden, device, isa):
    case = golden(name)
    weights = {key.rpartition(".")[2]: value for key, value in case.weights().items()}
    module = UpsampleConv(case["in/x"].shape[1]).to(device)
    module.load_state_dict(weights)
    found = module(case["in/x"].to(device))
    torch.testing.assert_close(found.cpu(), case["out/y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_and_batch_and_layout_change_no_bit(dtype, threads, isa):
    if isa == "fallback":
        pytest.skip("a promise of the kernels; torch's convolution makes none")
    x, weight, bias = make_case(3, 40, 40, 19, 11, dtype=dtype)
    threads(1)
    one = tfx.upsample_conv(x, weight, bias)
    threads(2)
    assert torch.equal(tfx.upsample_conv(x, weight, bias), one)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(tfx.upsample_conv(last, weight, bias), one)
    assert torch.equal(tfx.upsample_conv(x[1:2], weight, bias), one[1:2])


def test_strided_arguments_are_read_as_they_are(device, isa):
    x, weight, bias = make_case(2, 6, 8, 10, 12, device=device)
    strided = x.transpose(2, 3)[:, ::2, 1::2]
    found = tfx.upsample_conv(strided, weight[:, ::2].flip(3), bias)
    dense = [strided.contiguous(), weight[:, ::2].flip(3).contiguous(), bias]
    assert torch.equal(found, tfx.upsample_conv(*dense))
    assert worst_error(found, dense) < 1e-5


def test_an_empty_batch_and_a_missing_bias(device):
    x, weight, bias = make_case(0, 3, 4, 5, 6, device=device)
    assert tfx.upsample_conv(x, weight, bias).shape == (0, 4, 10, 12)
    assert reference.upsample_conv(x, weight, bias).shape == (0, 4, 10, 12)
    x, weight, bias = make_case(1, 3, 4, 5, 6, device=device)
    none = tfx.upsample_conv(x, weight)
    assert torch.equal(none, tfx.upsample_conv(x, weight, torch.zeros_like(bias)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_pixel_that_is_not_finite_spreads_as_in_eager(value, dtype, device, isa):
    case = make_case(2, 20, 40, 6, 14, dtype=dtype, device=device)
    case[0][1, 7, 2, 13] = value
    case[0][0, 3, 0, 0] = value
    found, expected = tfx.upsample_conv(*case), eager(*case)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())
    inf = expected.isinf()
    assert torch.equal(found[inf], expected[inf])


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_out_is_filled_in_any_layout(dtype, memory_format, device, isa):
    case = make_case(2, 5, 33, 4, 7, dtype=dtype, device=device)
    expected = tfx.upsample_conv(*case)
    out = torch.full_like(expected, 7.0).contiguous(memory_format=memory_format)
    assert tfx.upsample_conv(*case, out=out) is out
    assert torch.equal(out, expected)
    wide = expected.new_zeros(2, 33, 8, 28)
    assert torch.equal(tfx.upsample_conv(*case, out=wide[..., ::2]), expected)
    assert not wide[..., 1::2].any()


def test_a_large_result_asks_for_large_pages():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("no large pages on this machine")
    if not _info.kernels:
        pytest.skip("the fallback leaves its memory to torch")
    x, weight, _ = make_case(1, 1, 16, 512, 512)
    y = tfx.upsample_conv(x, weight)  # 64 MB, which no allocator keeps
    middle = y.data_ptr() + y.numel() * 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= middle < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            assert "hg" in line.split()
            return
    raise AssertionError("the result lies in no mapping")


def test_writing_into_out_is_seen_by_autograd(device):
    case = make_case(1, 2, 3, 2, 2, device=device)
    out = torch.zeros(1, 3, 4, 4, device=device)
    leaf = torch.ones_like(out, requires_grad=True)
    product = (leaf * out).sum()
    tfx.upsample_conv(*case, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_those_of_the_definition(shape, memory_format, device):
    case = make_case(*shape, device=device)
    case[0] = case[0].contiguous(memory_format=memory_format)
    seed = torch.randn(exact(case).shape, generator=torch.Generator().manual_seed(1))

    def gradients(function, tensors):
        leaves = [t.detach().requires_grad_() for t in tensors]
        return torch.autograd.grad(function(*leaves), leaves, seed.to(leaves[0]))

    wide = [t.double() for t in case]
    truth = gradients(reference.upsample_conv, wide)
    theirs = gradients(eager, case)
    for ours, torchs, true in zip(
        gradients(tfx.upsample_conv, case), theirs, truth, strict=True
    ):
        scale = true.abs().max().item()
        error = (ours.double() - true).abs().max().item()
        assert error <= 2 * (torchs.double() - true).abs().max().item() + 1e-6 * scale


def test_gradients_of_some_inputs_leave_the_others_alone(device):
    x, weight, bias = make_case(1, 3, 4, 3, 5, device=device)
    both = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    full = torch.autograd.grad(tfx.upsample_conv(*both, bias).sum(), both)
    only = x.clone().requires_grad_()
    found = torch.autograd.grad(tfx.upsample_conv(only, weight).sum(), only)[0]
    torch.testing.assert_close(found, full[0])
    bias.requires_grad_()
    grad = torch.autograd.grad(tfx.upsample_conv(x, weight, bias).sum(), bias)[0]
    assert grad.tolist() == [60.0] * 4  # ones, summed over 6 × 10 outputs


def test_a_backward_pass_under_autocast_changes_nothing(device):
    leaves = [t.requires_grad_() for t in make_case(1, 8, 8, 4, 4, device=device)]
    y = tfx.upsample_conv(*leaves)
    expected = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = torch.autograd.grad(y.sum(), leaves)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_float64_passes_gradcheck(device):
    case = [t.requires_grad_() for t in make_case(2, 2, 3, 2, 3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(tfx.upsample_conv, case)


def test_second_derivatives_are_those_of_torch(device):
    leaves = [t.requires_grad_() for t in make_case(1, 3, 4, 3, 5, device=device)]

    def second(function):
        y = function(*leaves).square().sum()
        first = torch.autograd.grad(y, leaves, create_graph=True)
        return torch.autograd.grad(sum(t.square().sum() for t in first), leaves)

    for ours, theirs in zip(second(tfx.upsample_conv), second(eager), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_half_precision_keep_its_digits(dtype, device):
    case = make_case(2, 8, 6, 5, 7, dtype=dtype, device=device)
    leaves = [t.requires_grad_() for t in case]
    wide = [t.detach().double().requires_grad_() for t in case]
    ours = torch.autograd.grad(tfx.upsample_conv(*leaves).float().sum(), leaves)
    true = torch.autograd.grad(reference.upsample_conv(*wide).sum(), wide)
    unit = torch.finfo(dtype).eps
    for a, b in zip(ours, true, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).abs().max() <= 2 * unit * b.abs().max()


def test_opcheck(device):
    case = make_case(2, 3, 5, 4, 6, device=device)
    last = case[0].contiguous(memory_format=torch.channels_last)
    leaves = [t.clone().requires_grad_() for t in case]
    op = torch.ops.tokenflow_ext.upsample_conv.default
    torch.library.opcheck(op, tuple(leaves))
    torch.library.opcheck(op, (last, case[1], None))
    torch.library.opcheck(op, (last[:, :, ::2], case[1], case[2]))
    out_op = torch.ops.tokenflow_ext.upsample_conv_out.default
    torch.library.opcheck(
        out_op, tuple(case), {"out": torch.empty(2, 5, 8, 12, device=device)}
    )


def test_compiled_values_are_equal(device):
    def net(x, weight, bias):
        y = tfx.upsample_conv(x, weight, bias)
        tfx.upsample_conv(x, weight, out=y)
        return tfx.upsample_conv(x * 2, weight, bias), y

    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(2, 3, 5, 4, 6), (1, 4, 3, 7, 5)]:
        case = make_case(*shape, device=device)
        for found, expected in zip(compiled(*case), net(*case), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.slow
def test_inductor_gives_equal_values_and_gradients(device):
    compiled = torch.compile(tfx.upsample_conv, fullgraph=True, dynamic=True)
    for shape in [(2, 3, 5, 4, 6), (1, 4, 3, 7, 5)]:
        leaves = [t.requires_grad_() for t in make_case(*shape, device=device)]
        found, expected = compiled(*leaves), tfx.upsample_conv(*leaves)
        assert torch.equal(found, expected)
        for a, b in zip(
            torch.autograd.grad(found.sum(), leaves),
            torch.autograd.grad(expected.sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_autocast_casts_as_a_convolution_does(device):
    case = make_case(1, 4, 6, 3, 5, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found, expected = tfx.upsample_conv(*case), eager(*case)
        wide = tfx.upsample_conv(*[t.double() for t in case])
    assert found.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(found, tfx.upsample_conv(*[t.bfloat16() for t in case]))
    assert wide.dtype == torch.float64


def test_the_fallback_agrees(device):
    case = make_case(2, 5, 7, 3, 4, device=device)
    torch.testing.assert_close(room._fallback(*case), tfx.upsample_conv(*case))
    last = case[0].contiguous(memory_format=torch.channels_last)
    found = room._fallback(last, *case[1:])
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_the_module_holds_the_parameters_of_a_convolution():
    module = UpsampleConv(4, 6, bias=False)
    assert [(n, list(p.shape)) for n, p in module.named_parameters()] == [
        ("weight", [6, 4, 3, 3])
    ]
    x = make_case(1, 4, 6, 3, 3)[0]
    assert torch.equal(module(x), tfx.upsample_conv(x, module.weight))
    assert UpsampleConv(4).weight.shape == (4, 4, 3, 3)


X, W, B = (1, 3, 4, 5), (6, 3, 3, 3), (6,)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "match"),
    [
        ((3, 4, 5), W, B, r"x must be \[B, C, H, W\].*got \[3, 4, 5\]"),
        ((1, 3, 0, 5), W, B, r"x must be .*at least 1, got \[1, 3, 0, 5\]"),
        (X, (6, 2, 3, 3), B, r"weight must be \[Co, 3, 3, 3\].*got \[6, 2, 3, 3\]"),
        (X, (6, 3, 5, 5), B, r"weight must be \[Co, 3, 3, 3\].*got \[6, 3, 5, 5\]"),
        (X, (0, 3, 3, 3), (0,), "weight must be .*Co at least 1"),
        (X, W, (5,), r"bias must be \[6\].*got \[5\]"),
    ],
)
def test_shapes_that_disagree_are_refused(x, weight, bias, match):
    with pytest.raises(ValueError, match=f"upsample_conv: {match}"):
        tfx.upsample_conv(torch.zeros(x), torch.zeros(weight), torch.zeros(bias))


def test_other_bad_input_is_refused_by_name():
    x, weight, bias = torch.zeros(X), torch.zeros(W), torch.zeros(B)
    with pytest.raises(TypeError, match="upsample_conv: x must be float32.*int64"):
        tfx.upsample_conv(x.long(), weight, bias)
    with pytest.raises(TypeError, match="upsample_conv: x must be a tensor, got list"):
        tfx.upsample_conv([1.0], weight, bias)
    with pytest.raises(TypeError, match="weight must have the dtype of x.*bfloat16"):
        tfx.upsample_conv(x, weight.bfloat16(), bias)
    with pytest.raises(ValueError, match="weight must be on the device of x.*meta"):
        tfx.upsample_conv(x, weight.to("meta"), bias)
    with pytest.raises(
        ValueError, match=r"out must be \[1, 6, 8, 10\].*\[1, 6, 8, 8\]"
    ):
        tfx.upsample_conv(x, weight, bias, out=torch.zeros(1, 6, 8, 8))
    with pytest.raises(TypeError, match="out must have the dtype of x"):
        tfx.upsample_conv(x, weight, bias, out=torch.zeros(1, 6, 8, 10).half())
    with pytest.raises(RuntimeError, match="out= is not differentiable, got weight"):
        tfx.upsample_conv(
            x, weight.requires_grad_(), bias, out=torch.zeros(1, 6, 8, 10)
        )
