"""group_norm_silu errs no more than torch's two steps, in every layout and dtype."""

import pytest
import torch
import torch.nn.functional as F

import tokenflow_ext as tfx
from tokenflow_ext import reference
from tokenflow_ext.nn import GroupNormSiLU
from tokenflow_ext.ops import group_norm_silu as room

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = [torch.contiguous_format, torch.channels_last]
# Around one vector of channels or positions, and more than one chunk of a group.
SHAPES = [  # size, groups
    ((2, 6, 5, 3), 3),
    ((1, 64, 16, 16), 32),
    ((2, 33, 13, 9), 11),
    ((3, 96, 1, 1), 32),
    ((1, 20, 61, 33), 2),
    ((1, 1, 8, 8), 1),
    ((1, 80, 70, 70), 5),
]
OTHER_RANKS = [((5, 12), 4), ((2, 8, 7), 2), ((2, 8, 3, 4, 5), 4)]


def make_case(size, *, mean=0.0, dtype=torch.float32, device="cpu", seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=g) + mean
    weight = 1 + 0.5 * torch.randn(size[1], generator=g)
    bias = torch.randn(size[1], generator=g)
    return [x.to(device, dtype), weight.to(device), bias.to(device)]


def eager(x, weight, bias, groups, eps=1e-6):
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return F.silu(torch.group_norm(x, groups, weight, bias, eps))


def exact(case, groups, eps=1e-6):
    wide = [t.double() for t in case]
    return reference.group_norm_silu(*wide, num_groups=groups, eps=eps)


def assert_no_worse_than_eager(found, case, groups):
    truth = exact(case, groups)
    ours = (found.double() - truth).abs().max()
    theirs = (eager(*case, groups).double() - truth).abs().max()
    assert ours <= 2 * theirs + 1e-6


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("mean", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "groups"), SHAPES, ids=str)
def test_group_norm_silu_errs_no_more_than_eager(
    size, groups, dtype, mean, memory_format, device, isa
):
    case = make_case(size, mean=mean, dtype=dtype, device=device)
    case[0] = case[0].contiguous(memory_format=memory_format)
    found = tfx.group_norm_silu(*case, num_groups=groups)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=memory_format)
    assert_no_worse_than_eager(found, case, groups)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("size", [(1, 8, 40, 40), (1, 64, 80, 80)], ids=str)
def test_first_values_far_from_all_others_cost_no_digits(size, memory_format, isa):
    # Squares are added about a mean of a few samples, which these values spoil.
    case = make_case(size)
    case[0][:, :, 0, :8] += 1000
    case[0] = case[0].contiguous(memory_format=memory_format)
    found = tfx.group_norm_silu(*case, num_groups=4)
    assert_no_worse_than_eager(found, case, 4)


@pytest.mark.parametrize(("size", "groups"), OTHER_RANKS, ids=str)
def test_any_number_of_dimensions(size, groups, device, isa):
    case = make_case(size, device=device)
    found = tfx.group_norm_silu(*case, num_groups=groups)
    assert_no_worse_than_eager(found, case, groups)


def test_a_case_worked_by_hand(device):
    # Mean 2, variance 1: the group becomes −1, 1, −1, 1; scaled and shifted to 0 and 4
    # in channel 0, to 1 and −1 in channel 1.
    x = torch.tensor([[[1.0, 3.0], [1.0, 3.0]]], device=device)
    weight = torch.tensor([2.0, -1.0], device=device)
    bias = torch.tensor([2.0, 0.0], device=device)
    found = tfx.group_norm_silu(x, weight, bias, num_groups=1, eps=0.0)
    sigmoid = {v: 1 / (1 + 2.718281828459045**-v) for v in (4, 1, -1)}
    expected = [[[0.0, 4 * sigmoid[4]], [sigmoid[1], -sigmoid[-1]]]]
    torch.testing.assert_close(found.cpu(), torch.tensor(expected))


def test_silu_is_right_over_its_whole_range(device, isa):
    # One group of ±1 and a channel each to place the values: weight 0, bias v.
    values = torch.cat([torch.linspace(-120, 120, 4001), torch.tensor([0.0, -0.0])])
    x = torch.tensor([1.0, -1.0], device=device).repeat(1, len(values), 1)
    bias = values.to(device)
    found = tfx.group_norm_silu(x, torch.zeros_like(bias), bias, num_groups=1)
    truth = F.silu(bias.double())[None, :, None].expand_as(found)
    error = (found.double() - truth).abs()
    assert (error <= 4e-7 * truth.abs() + 1e-35).all()


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_and_batch_change_no_bit(dtype, memory_format, threads, isa):
    if isa == "fallback":
        pytest.skip("a promise of the kernels; torch's norm makes none")
    x, weight, bias = make_case((3, 40, 51, 37), dtype=dtype)
    x = x.contiguous(memory_format=memory_format)
    threads(1)
    one = tfx.group_norm_silu(x, weight, bias, num_groups=4)
    threads(2)
    assert torch.equal(tfx.group_norm_silu(x, weight, bias, num_groups=4), one)
    alone = tfx.group_norm_silu(x[1:2], weight, bias, num_groups=4)
    assert torch.equal(alone, one[1:2])


def test_strided_arguments_are_read_as_they_are(device, isa):
    x, weight, bias = make_case((2, 12, 10, 12), device=device)
    strided = [x.transpose(2, 3)[:, ::2, 1::2], weight[::2], bias.flip(0)[::2]]
    found = tfx.group_norm_silu(*strided, num_groups=3)
    dense = [t.contiguous() for t in strided]
    assert torch.equal(found, tfx.group_norm_silu(*dense, num_groups=3))
    assert_no_worse_than_eager(found, dense, 3)


def test_an_empty_batch(device):
    case = make_case((0, 32, 4, 4), device=device)
    assert tfx.group_norm_silu(*case).shape == (0, 32, 4, 4)
    assert reference.group_norm_silu(*case).shape == (0, 32, 4, 4)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_spoils_its_group_as_in_eager(
    value, memory_format, device, isa
):
    case = make_case((2, 12, 5, 7), device=device)
    case[0][1, 4, 2, 3] = value
    case[0] = case[0].contiguous(memory_format=memory_format)
    found = tfx.group_norm_silu(*case, num_groups=4)
    assert torch.equal(found.isnan(), eager(*case, 4).isnan())
    assert found.isnan().sum() == 3 * 5 * 7


def test_a_constant_group_keeps_its_bias(device, isa):
    x = torch.full((1, 4, 3, 3), 1e4, device=device)
    weight, bias = torch.ones(4, device=device), torch.arange(4.0, device=device)
    found = tfx.group_norm_silu(x, weight, bias, num_groups=2)
    torch.testing.assert_close(found, F.silu(bias)[None, :, None, None].expand_as(x))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_out_is_filled_in_any_layout(dtype, memory_format, device, isa):
    case = make_case((2, 34, 5, 7), dtype=dtype, device=device)
    expected = tfx.group_norm_silu(*case, num_groups=17)
    out = torch.full_like(expected, 7.0).contiguous(memory_format=memory_format)
    assert tfx.group_norm_silu(*case, num_groups=17, out=out) is out
    assert torch.equal(out, expected)
    wide = expected.new_zeros(2, 34, 5, 14)
    found = tfx.group_norm_silu(*case, num_groups=17, out=wide[..., ::2])
    assert torch.equal(found, expected)
    assert not wide[..., 1::2].any()


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_out_may_be_x(dtype, memory_format, device, isa):
    x, weight, bias = make_case((2, 34, 5, 7), dtype=dtype, device=device)
    x = x.contiguous(memory_format=memory_format)
    expected = tfx.group_norm_silu(x, weight, bias, num_groups=17)
    strided = x.repeat(1, 1, 1, 2)[..., ::2]
    expected_strided = tfx.group_norm_silu(strided, weight, bias, num_groups=17)
    for t, y in ((x, expected), (strided, expected_strided)):
        assert tfx.group_norm_silu(t, weight, bias, num_groups=17, out=t) is t
        assert torch.equal(t, y)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize(
    "size", [(1, 48, 224, 200), (9, 480, 22, 24), (1, 45, 225, 211)], ids=str
)
def test_results_past_the_caches_are_those_of_in_place(size, memory_format, isa):
    x, weight, bias = make_case(size)  # more than two million elements
    x = x.contiguous(memory_format=memory_format)
    room_for_more = torch.empty(x.numel() + 1)[1:]  # not aligned to a line of cache
    odd = room_for_more.as_strided(x.shape, x.stride())
    rest = {"num_groups": 3}
    tfx.group_norm_silu(x, weight, bias, out=odd, **rest)
    fresh = tfx.group_norm_silu(x, weight, bias, **rest)
    tfx.group_norm_silu(x, weight, bias, out=x, **rest)
    assert torch.equal(fresh, x)
    assert torch.equal(odd, x)


def test_writing_into_out_is_seen_by_autograd(device):
    case = make_case((1, 4, 2, 2), device=device)
    leaf = torch.ones_like(case[0], requires_grad=True)
    product = (leaf * case[0]).sum()
    tfx.group_norm_silu(*case, num_groups=2, out=case[0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "groups"), SHAPES, ids=str)
def test_gradients_are_those_of_the_definition(
    size, groups, dtype, mean, memory_format, device, isa
):
    case = make_case(size, mean=mean, dtype=dtype, device=device)
    case[0] = case[0].contiguous(memory_format=memory_format)
    seed = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)

    def gradients(function, tensors, *args, **kwargs):
        leaves = [t.detach().requires_grad_() for t in tensors]
        y = function(*leaves, *args, **kwargs)
        return torch.autograd.grad(y, leaves, seed.to(y))

    truth = gradients(
        reference.group_norm_silu, [t.double() for t in case], num_groups=groups
    )
    theirs = gradients(eager, case, groups)
    ours = gradients(tfx.group_norm_silu, case, num_groups=groups)
    for t, a, b, true in zip(case, ours, theirs, truth, strict=True):
        assert a.dtype == t.dtype
        scale = true.abs().max()
        error = (a.double() - true).abs().max()
        assert error <= 2 * (b.double() - true).abs().max() + 2e-6 * scale


def gradients_of(case, groups, seed):
    leaves = [t.detach().requires_grad_() for t in case]
    return torch.autograd.grad(
        tfx.group_norm_silu(*leaves, num_groups=groups), leaves, seed
    )


def test_gradients_worked_by_hand(device, isa):
    # Mean 2, deviation 1, weight 1 and bias 0: the group becomes -1, 1, and two more of
    # them. silu'(1) = s + s (1 - s), silu'(-1) = 1 - silu'(1), with s = 0.7310586.
    # Only the first value is asked for; the rest of the group answers for its mean and
    # spread: (d - mean(d) - normed * mean(d * normed)) / deviation.
    x = torch.tensor([[[1.0, 3.0], [1.0, 3.0]]], device=device)
    weight, bias = torch.ones(2, device=device), torch.zeros(2, device=device)
    seed = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], device=device)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = tfx.group_norm_silu(*leaves, num_groups=1, eps=0.0)
    found = torch.autograd.grad(y, leaves, seed)
    s = 1 / (1 + 2.718281828459045**-1)
    d = 1 - (s + s * (1 - s))
    expected = [
        [[[d / 2, 0.0], [-d / 2, 0.0]]],
        [-d, 0.0],
        [d, 0.0],
    ]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), torch.tensor(b), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(3, 40, 51, 37), (9, 40, 5, 7)], ids=str)
def test_threads_and_batch_change_no_bit_of_the_gradient(
    size, dtype, memory_format, threads, isa
):
    if isa == "fallback":
        pytest.skip("a promise of the kernels; torch's norm makes none")
    x, weight, bias = make_case(size, dtype=dtype)
    x = x.contiguous(memory_format=memory_format)
    seed = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)
    threads(1)
    one = gradients_of((x, weight, bias), 4, seed)
    threads(2)
    for a, b in zip(gradients_of((x, weight, bias), 4, seed), one, strict=True):
        assert torch.equal(a, b)
    alone = gradients_of((x[1:2], weight, bias), 4, seed[1:2])
    assert torch.equal(alone[0], one[0][1:2])


def test_the_gradient_of_an_empty_batch_is_zero(device):
    case = make_case((0, 32, 4, 4), device=device)
    found = gradients_of(case, 32, case[0])
    assert found[0].shape == (0, 32, 4, 4)
    assert not any(t.any() for t in found[1:])


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("where", ["x", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_gradient_of_a_value_that_is_not_finite_spoils_what_it_does_in_eager(
    value, where, memory_format, device, isa
):
    case = make_case((2, 12, 5, 7), device=device)
    seed = torch.ones_like(case[0])
    (case[0] if where == "x" else seed)[1, 4, 2, 3] = value
    case[0] = case[0].contiguous(memory_format=memory_format)
    found = gradients_of(case, 4, seed)
    leaves = [t.detach().requires_grad_() for t in case]
    expected = torch.autograd.grad(eager(*leaves, 4), leaves, seed)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


def test_the_gradient_may_come_in_any_layout_and_dtype(device, isa):
    case = make_case((2, 12, 5, 7), device=device)
    seed = torch.randn(2, 12, 7, 5, device=device).transpose(2, 3)
    for x in (case[0], case[0].contiguous(memory_format=torch.channels_last)):
        expected = gradients_of((x, *case[1:]), 4, seed.contiguous())
        found = gradients_of((x, *case[1:]), 4, seed)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
        assert found[0].stride() == x.stride()


def test_gradients_of_some_inputs_leave_the_others_alone(device):
    x, weight, bias = make_case((2, 6, 3, 5), device=device)
    leaf = x.clone().requires_grad_()
    found = torch.autograd.grad(
        tfx.group_norm_silu(leaf, weight, bias, num_groups=3).sum(), leaf
    )[0]
    expected = torch.autograd.grad(eager(leaf, weight, bias, 3).sum(), leaf)[0]
    torch.testing.assert_close(found, expected)
    bias.requires_grad_()
    y = tfx.group_norm_silu(x, weight, bias, num_groups=3)
    grad = torch.autograd.grad(y.sum(), bias)[0]
    expected = torch.autograd.grad(eager(x, weight, bias, 3).sum(), bias)[0]
    torch.testing.assert_close(grad, expected)


def test_float64_passes_gradcheck(device):
    case = [t.double().requires_grad_() for t in make_case((2, 4, 3, 2))]
    assert torch.autograd.gradcheck(
        lambda *t: tfx.group_norm_silu(*t, num_groups=2), case
    )


def test_a_second_derivative_is_refused(device):
    leaves = [t.requires_grad_() for t in make_case((1, 4, 3, 5), device=device)]
    y = tfx.group_norm_silu(*leaves, num_groups=2).square().sum()
    first = torch.autograd.grad(y, leaves, create_graph=True)
    with pytest.raises(NotImplementedError, match="group_norm_silu: the gradient"):
        first[0].sum().backward()


def test_opcheck(device):
    case = make_case((2, 6, 3, 5), device=device)
    leaves = [t.clone().requires_grad_() for t in case]
    last = case[0].contiguous(memory_format=torch.channels_last)
    op = torch.ops.tokenflow_ext.group_norm_silu.default
    torch.library.opcheck(op, (*leaves, 3, 1e-6))
    torch.library.opcheck(op, (last, *case[1:], 3, 1e-6))
    torch.library.opcheck(op, (last[..., ::2].bfloat16(), *case[1:], 3, 1e-6))
    back = torch.ops.tokenflow_ext.group_norm_silu_backward.default
    torch.library.opcheck(back, (case[0] * 2, *case, 3, 1e-6))
    torch.library.opcheck(back, (last * 2, last, *case[1:], 3, 1e-6))
    out_op = torch.ops.tokenflow_ext.group_norm_silu_out.default
    torch.library.opcheck(out_op, (*case, 3, 1e-6), {"out": torch.empty_like(case[0])})


def test_compiled_values_are_equal(device):
    def net(x, weight, bias):
        y = x + 1
        tfx.group_norm_silu(y, weight, bias, num_groups=2, out=y)
        return tfx.group_norm_silu(x * 2, weight, bias, num_groups=2), y

    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in [(2, 6, 3, 5), (1, 8, 7, 4)]:
        case = make_case(size, device=device)
        for found, expected in zip(compiled(*case), net(*case), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.slow
def test_inductor_gives_equal_values_and_gradients(device):
    def net(*case):
        return tfx.group_norm_silu(*case, num_groups=2)

    compiled = torch.compile(net, fullgraph=True, dynamic=True)
    for size in [(2, 6, 3, 5), (1, 8, 7, 4)]:
        leaves = [t.requires_grad_() for t in make_case(size, device=device)]
        found, expected = compiled(*leaves), net(*leaves)
        assert torch.equal(found, expected)
        for a, b in zip(
            torch.autograd.grad(found.sum(), leaves),
            torch.autograd.grad(expected.sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_autocast_keeps_the_dtype_of_x(device):
    case = make_case((1, 8, 3, 5), device=device)
    plain = tfx.group_norm_silu(*case, num_groups=2)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(tfx.group_norm_silu(*case, num_groups=2), plain)
        half = tfx.group_norm_silu(case[0].bfloat16(), *case[1:], num_groups=2)
    assert half.dtype == torch.bfloat16


def test_the_fallback_agrees(device):
    case = make_case((2, 6, 3, 5), device=device)
    found = room._fallback(*case, 3, 1e-6)
    torch.testing.assert_close(found, tfx.group_norm_silu(*case, num_groups=3))
    last = case[0].contiguous(memory_format=torch.channels_last)
    found = room._fallback(last, *case[1:], 3, 1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for x in (case[0], last):
        found = room._backward_fallback(x * 2, x, *case[1:], 3, 1e-6)
        expected = room._group_norm_silu_backward(x * 2, x, *case[1:], 3, 1e-6)
        torch.testing.assert_close(found, expected)
        assert found[0].stride() == expected[0].stride()


def test_the_module_holds_the_parameters_of_the_norm():
    module = GroupNormSiLU(8, num_groups=2, eps=1e-3)
    assert [(n, list(p.shape)) for n, p in module.named_parameters()] == [
        ("weight", [8]),
        ("bias", [8]),
    ]
    x = make_case((1, 8, 3, 3))[0]
    expected = F.silu(F.group_norm(x, 2, eps=1e-3))
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(
    ("size", "weight", "bias", "options", "match"),
    [
        ((6,), 6, 6, {}, r"x must be \[B, C, ...\].*got \[6\]"),
        ((1, 6, 0), 6, 6, {}, r"x must be .*at least 1, got \[1, 6, 0\]"),
        ((1, 6, 2), 5, 6, {}, r"weight must be \[6\].*got \[5\]"),
        ((1, 6, 2), 6, 7, {}, r"bias must be \[6\].*got \[7\]"),
        ((1, 6, 2), 6, 6, {"num_groups": 4}, "num_groups must divide the 6.*got 4"),
        ((1, 6, 2), 6, 6, {"num_groups": 0}, "num_groups must divide the 6.*got 0"),
        ((1, 6, 2), 6, 6, {"eps": -1.0}, "eps must be finite and at least 0, got -1"),
    ],
)
def test_arguments_that_disagree_are_refused(size, weight, bias, options, match):
    options = {"num_groups": 2, **options}
    with pytest.raises(ValueError, match=f"group_norm_silu: {match}"):
        tfx.group_norm_silu(
            torch.zeros(size), torch.zeros(weight), torch.zeros(bias), **options
        )


def test_other_bad_input_is_refused_by_name():
    x, weight, bias = make_case((1, 32, 2, 2))
    with pytest.raises(TypeError, match="group_norm_silu: x must be float32.*int64"):
        tfx.group_norm_silu(x.long(), weight, bias)
    with pytest.raises(TypeError, match="weight must be a tensor, got list"):
        tfx.group_norm_silu(x, [1.0], bias)
    with pytest.raises(ValueError, match="bias must be on the device of x.*meta"):
        tfx.group_norm_silu(x, weight, bias.to("meta"))
    with pytest.raises(ValueError, match=r"out must be \[1, 32, 2, 2\].*\[1, 32, 2\]"):
        tfx.group_norm_silu(x, weight, bias, out=torch.zeros(1, 32, 2))
    with pytest.raises(TypeError, match="out must have the dtype of x.*float16"):
        tfx.group_norm_silu(x, weight, bias, out=x.half())
    with pytest.raises(ValueError, match=r"out must have a place.*\[0, 4, 2, 1\]"):
        twice = x.expand(2, -1, -1, -1)
        tfx.group_norm_silu(twice.clone(), weight, bias, out=twice)
    with pytest.raises(RuntimeError, match="out= is not differentiable, got bias"):
        tfx.group_norm_silu(x, weight, bias.requires_grad_(), out=x)
