"""conv3x3 errs no more than torch's convolution, whatever is fused around it."""

import pytest
import torch
import torch.nn.functional as F

import tokenflow_ext as tfx
from tokenflow_ext import reference
from tokenflow_ext.nn import Conv3x3, GroupNormSiLU
from tokenflow_ext.ops import conv3x3 as room

FORMATS = [torch.contiguous_format, torch.channels_last]
# Around one tile of 2×2, one block of 8×8 tiles, one vector and one block of channels,
# and below the channels that our kernel takes.
SHAPES = [  # B, C, Co, H, W
    (1, 32, 32, 1, 1),
    (2, 32, 33, 2, 3),
    (1, 40, 64, 15, 17),
    (2, 64, 48, 16, 16),
    (1, 129, 95, 19, 35),
    (1, 32, 160, 7, 130),
    (3, 33, 32, 34, 5),
    (1, 8, 40, 6, 6),
    (1, 40, 3, 6, 6),
]
BIG = [(1, 128, 128, 40, 40), (1, 512, 64, 16, 16)]


def make_case(shape, *, dtype=torch.float32, device="cpu", seed=0, mean=0.0):
    batch, channels, outputs, height, width = shape
    g = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=g)

    case = {
        "x": draw(batch, channels, height, width) + mean,
        "weight": draw(outputs, channels, 3, 3) / (9 * channels) ** 0.5,
        "bias": draw(outputs),
        "norm_weight": 1 + 0.5 * draw(channels),
        "norm_bias": draw(channels),
        "residual": draw(batch, outputs, height, width),
    }
    return {name: t.to(device, dtype) for name, t in case.items()}


def groups_of(case):
    channels = case["x"].shape[1]
    return next(g for g in (8, 4, 3, 1) if channels % g == 0)


def plain(case):
    return {name: case[name] for name in ("x", "weight", "bias")}


def fused(case):
    return {**case, "num_groups": groups_of(case)}


WAYS = {
    "plain": plain,
    "no bias": lambda case: {name: case[name] for name in ("x", "weight")},
    "normed": lambda case: {k: v for k, v in fused(case).items() if k != "residual"},
    "residual": lambda case: {**plain(case), "residual": case["residual"]},
    "all": fused,
}


def eager(arguments):
    x = arguments["x"]
    if "norm_weight" in arguments:
        norm = arguments["norm_weight"], arguments["norm_bias"]
        x = F.silu(F.group_norm(x, arguments["num_groups"], *norm, 1e-6))
    y = F.conv2d(x, arguments["weight"], arguments.get("bias"), padding=1)
    return y + arguments["residual"] if "residual" in arguments else y


def wide(arguments):
    return {k: v.double() if torch.is_tensor(v) else v for k, v in arguments.items()}


def error(found, arguments):
    return (found.double() - reference.conv3x3(**wide(arguments))).abs().max()


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conv3x3_errs_no_more_than_eager(shape, way, memory_format, device, isa):
    arguments = WAYS[way](make_case(shape, device=device))
    arguments["x"] = arguments["x"].contiguous(memory_format=memory_format)
    found = tfx.conv3x3(**arguments)
    assert found.is_contiguous(memory_format=memory_format)
    assert error(found, arguments) <= 2 * error(eager(arguments), arguments) + 1e-6


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("mean", [0.0, 10.0])
@pytest.mark.parametrize("shape", BIG, ids=str)
def test_at_the_sizes_of_decoders_it_errs_less_than_eager(
    shape, mean, memory_format, isa
):
    arguments = plain(make_case(shape, mean=mean))
    arguments["x"] = arguments["x"].contiguous(memory_format=memory_format)
    found = tfx.conv3x3(**arguments)
    # Measured: 0.4 to 0.8 of eager's contiguous, 0.1 to 0.2 of its channels_last.
    assert error(found, arguments) <= error(eager(arguments), arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_half_precision_errs_no_more_than_eager(way, dtype, device):
    arguments = WAYS[way](make_case((2, 40, 33, 9, 7), dtype=dtype, device=device))
    found = tfx.conv3x3(**arguments)
    assert found.dtype == dtype
    assert error(found, arguments) <= 2 * error(eager(arguments), arguments) + 1e-6


def test_a_case_worked_by_hand(device, isa):
    # One channel of 32 is not zero: 1 2 / 3 4, and the filter counts right and below.
    x = torch.zeros(1, 32, 2, 2)
    x[0, 5] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    weight = torch.zeros(32, 32, 3, 3)
    weight[7, 5, 1, 2] = 1.0
    weight[7, 5, 2, 1] = 10.0
    bias = torch.zeros(32)
    bias[7] = 0.5
    expected = torch.zeros(1, 32, 2, 2)
    expected[0, 7] = torch.tensor([[32.5, 40.5], [4.5, 0.5]])
    case = [t.to(device) for t in (x, weight, bias)]
    torch.testing.assert_close(tfx.conv3x3(*case).cpu(), expected)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_threads_batch_and_position_change_no_bit(memory_format, threads, isa):
    if isa == "fallback":
        pytest.skip("a promise of the kernel; torch's convolution makes none")
    case = make_case((3, 40, 70, 37, 51))
    case["x"] = case["x"].contiguous(memory_format=memory_format)
    arguments = fused(case)
    threads(1)
    one = tfx.conv3x3(**arguments)
    threads(2)
    assert torch.equal(tfx.conv3x3(**arguments), one)
    part = {**arguments, "x": case["x"][1:2], "residual": case["residual"][1:2]}
    assert torch.equal(tfx.conv3x3(**part), one[1:2])
    # By two pixels, the step of a tile: other tiles of other blocks, the same sums.
    plain_case = {**plain(case), "x": case["x"][:, :, 2:, 4:]}
    inner, whole = tfx.conv3x3(**plain_case), tfx.conv3x3(**plain(case))
    assert torch.equal(inner[:, :, 1:, 1:], whole[:, :, 3:, 5:])


def test_strided_arguments_are_read_as_they_are(device, isa):
    case = make_case((2, 64, 40, 8, 12), device=device)
    strided = {
        "x": case["x"].transpose(2, 3)[:, ::2, 1::2],
        "weight": case["weight"][:, ::2].flip(0),
        "bias": case["bias"].repeat(2)[::2],
        "norm_weight": case["norm_weight"][::2],
        "norm_bias": case["norm_bias"].flip(0)[::2],
        "residual": case["residual"].transpose(2, 3)[:, :, 1::2],
    }
    dense = {name: t.contiguous() for name, t in strided.items()}
    found = tfx.conv3x3(**strided, num_groups=4)
    assert torch.equal(found, tfx.conv3x3(**dense, num_groups=4))


def test_an_empty_batch(device):
    case = make_case((0, 32, 40, 4, 4), device=device)
    assert tfx.conv3x3(**fused(case)).shape == (0, 40, 4, 4)
    assert reference.conv3x3(**fused(case)).shape == (0, 40, 4, 4)


def test_nan_stays_near_where_it_was(device, isa):
    arguments = plain(make_case((1, 32, 32, 40, 40), device=device))
    arguments["x"][0, 3, 20, 21] = torch.nan
    found = tfx.conv3x3(**arguments).isnan()
    assert found[:, :, 19:22, 20:23].all()
    # A tile shares its inputs: up to one pixel further than the window.
    assert not found[:, :, :18].any() and not found[:, :, 23:].any()
    assert not found[..., :19].any() and not found[..., 24:].any()


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_definition(way, memory_format, device):
    arguments = WAYS[way](make_case((2, 32, 40, 5, 6), device=device))
    arguments["x"] = arguments["x"].contiguous(memory_format=memory_format)
    seed = torch.randn(2, 40, 5, 6, generator=torch.Generator().manual_seed(1))

    def gradients(function, given):
        leaves = {
            k: v.detach().requires_grad_() if torch.is_tensor(v) else v
            for k, v in given.items()
        }
        y = function(leaves)
        tensors = [v for v in leaves.values() if torch.is_tensor(v)]
        return torch.autograd.grad(y, tensors, seed.to(y))

    truth = gradients(lambda a: reference.conv3x3(**a), wide(arguments))
    theirs = gradients(eager, arguments)
    ours = gradients(lambda a: tfx.conv3x3(**a), arguments)
    for a, b, true in zip(ours, theirs, truth, strict=True):
        scale = true.abs().max()
        worst = (a.double() - true).abs().max()
        assert worst <= 2 * (b.double() - true).abs().max() + 2e-6 * scale


@pytest.mark.parametrize("name", ["x", "weight", "bias", "norm_weight", "residual"])
def test_gradients_of_one_input_leave_the_others_alone(name, device):
    arguments = fused(make_case((1, 32, 32, 4, 5), device=device))
    arguments[name].requires_grad_()
    found = torch.autograd.grad(tfx.conv3x3(**arguments).sum(), arguments[name])[0]
    expected = torch.autograd.grad(eager(arguments).sum(), arguments[name])[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_opcheck(device):
    case = make_case((2, 33, 40, 3, 5), device=device)
    x, weight, bias, nw, nb, residual = (t.requires_grad_() for t in case.values())
    op = torch.ops.tokenflow_ext.conv3x3.default
    last = x.detach().contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(op, (x, weight, bias, nw, nb, 3, 1e-6, residual, None, False))
    torch.library.opcheck(
        op, (last, weight, None, None, None, 1, 0.0, None, None, True)
    )
    pack = torch.ops.tokenflow_ext.conv3x3_pack.default
    torch.library.opcheck(pack, (weight.detach(),))


def test_compiled_values_are_equal(device):
    def net(arguments):
        return tfx.conv3x3(**arguments)

    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(2, 32, 40, 3, 5), (1, 64, 33, 7, 4)]:
        arguments = fused(make_case(shape, device=device))
        assert torch.equal(compiled(arguments), net(arguments))


def test_autocast_casts_as_a_convolution_does(device):
    arguments = plain(make_case((1, 32, 32, 4, 5), device=device))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = tfx.conv3x3(**arguments)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, eager(arguments))


def test_packed_weights_are_the_same_on_every_backend(isa):
    weight = make_case((1, 37, 70, 1, 1))["weight"]
    assert torch.equal(room.pack(weight), room._fallback_pack(weight))


def test_the_fallback_agrees(device):
    case = make_case((2, 32, 40, 5, 6), device=device)
    given = (case["x"], case["weight"], case["bias"], case["norm_weight"])
    given = (*given, case["norm_bias"], 4, 1e-6, case["residual"], None, False)
    found = room.composed(*given)
    torch.testing.assert_close(found, room._conv3x3(*given), rtol=1e-5, atol=1e-5)


def test_the_module_is_a_convolution_with_more():
    torch.manual_seed(0)
    conv, norm = Conv3x3(32, 40), GroupNormSiLU(32, num_groups=4)
    x, residual = torch.randn(2, 32, 6, 5), torch.randn(2, 40, 6, 5)
    assert list(conv.state_dict()) == ["weight", "bias"]
    with torch.no_grad():
        torch.testing.assert_close(
            conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1)
        )
        expected = F.conv2d(norm(x), conv.weight, conv.bias, padding=1) + residual
        torch.testing.assert_close(conv(x, norm, residual), expected)
    assert list(conv.state_dict()) == ["weight", "bias"]


def with_optimizer(conv, value):
    step = torch.optim.SGD(conv.parameters(), lr=1.0)
    conv.weight.grad = conv.weight.detach() - value
    step.step()


CHANGES = {
    "in place": lambda conv, value: conv.weight.copy_(value),
    "load_state_dict": lambda conv, value: conv.load_state_dict(
        {"weight": value, "bias": conv.bias}
    ),
    "another parameter": lambda conv, value: setattr(
        conv, "weight", torch.nn.Parameter(value)
    ),
    "an optimizer": with_optimizer,
}


@pytest.mark.parametrize("change", CHANGES)
def test_kept_panels_are_never_stale(change):
    torch.manual_seed(0)
    conv, x = Conv3x3(32), torch.randn(1, 32, 4, 4)
    value = torch.randn(32, 32, 3, 3)
    with torch.no_grad():
        conv(x)
        CHANGES[change](conv, value)
        expected = F.conv2d(x, value, conv.bias, padding=1)
        torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)


def test_panels_are_kept_without_gradients_only():
    conv, x = Conv3x3(32), torch.randn(1, 32, 4, 4)
    conv(x)
    assert conv._tokenflow_panels._kept is None
    with torch.no_grad():
        conv(x)
        kept = conv._tokenflow_panels._kept[2]
        conv(x)
    assert conv._tokenflow_panels._kept[2] is kept
    with torch.inference_mode():
        torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, 1, 1))


ZERO = {"x": (1, 32, 2, 2), "weight": (32, 32, 3, 3)}


@pytest.mark.parametrize(
    ("sizes", "options", "match"),
    [
        ({"x": (32, 2, 2)}, {}, r"x must be \[B, C, H, W\].*got \[32, 2, 2\]"),
        ({"x": (1, 32, 0, 2)}, {}, "x must be .*at least 1"),
        ({"weight": (32, 31, 3, 3)}, {}, r"weight must be \[Co, 32, 3, 3\]"),
        ({"weight": (0, 32, 3, 3)}, {}, "weight must be .*Co at least 1"),
        ({"bias": (31,)}, {}, r"bias must be \[32\].*got \[31\]"),
        ({"residual": (1, 32, 2, 3)}, {}, r"residual must be \[1, 32, 2, 2\]"),
        ({"norm_weight": (32,)}, {}, "norm_weight and norm_bias must come together"),
        ({"norm_bias": (32,)}, {}, "norm_weight and norm_bias must come together"),
        (
            {"norm_weight": (31,), "norm_bias": (32,)},
            {},
            r"norm_weight must be \[32\].*got \[31\]",
        ),
        (
            {"norm_weight": (32,), "norm_bias": (32,)},
            {"num_groups": 5},
            "num_groups must divide the 32",
        ),
        (
            {"norm_weight": (32,), "norm_bias": (32,)},
            {"eps": -1.0},
            "eps must be finite and at least 0",
        ),
    ],
)
def test_arguments_that_disagree_are_refused(sizes, options, match):
    arguments = {name: torch.zeros(size) for name, size in (ZERO | sizes).items()}
    with pytest.raises(ValueError, match=f"conv3x3: {match}"):
        tfx.conv3x3(**arguments, **options)


def test_other_bad_input_is_refused_by_name():
    x, weight = torch.zeros(1, 32, 2, 2), torch.zeros(32, 32, 3, 3)
    with pytest.raises(TypeError, match="conv3x3: x must be a tensor, got list"):
        tfx.conv3x3([1], weight)
    with pytest.raises(TypeError, match="conv3x3: weight must have the dtype of x"):
        tfx.conv3x3(x, weight.half())
    with pytest.raises(ValueError, match="conv3x3: weight must be on the device of x"):
        tfx.conv3x3(x, weight.to("meta"))
