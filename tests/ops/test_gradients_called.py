"""However a differentiable op is called, its gradient is the registered one."""

import pytest
import torch
from torch.autograd import forward_ad

import tokenflow_ext as tfx
from tokenflow_ext import _library
from tokenflow_ext.testing import make_books


def case(name):
    """A call, and the leaves it is differentiable in."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g).requires_grad_()

    image, weight, bias = draw(2, 32, 4, 6), draw(32, 32, 3, 3), draw(32)
    books = [book.requires_grad_() for book in make_books(20, 6, 2, seed=1)]
    indices = torch.randint(-1, 21, (2, 5), generator=g)
    return {
        "conv3x3": (lambda *a: tfx.conv3x3(*a), (image, weight, bias)),
        "upsample_conv": (lambda *a: tfx.upsample_conv(*a), (image, weight, bias)),
        "group_norm_silu": (
            lambda *a: tfx.group_norm_silu(*a, num_groups=8),
            (image, bias, draw(32)),
        ),
        "lookup": (lambda *a: tfx.lookup(indices, *a), books),
        "pyramid_lookup": (lambda *a: tfx.pyramid_lookup(indices, *a, [1, 2]), books),
    }[name]


NAMES = ("conv3x3", "upsample_conv", "group_norm_silu", "lookup", "pyramid_lookup")
pytestmark = pytest.mark.parametrize("name", NAMES)


def gradients(run, leaves):
    y = run(*leaves)
    assert y.requires_grad
    return torch.autograd.grad(y.square().sum(), leaves)


def test_it_is_that_of_the_op_that_torch_knows(name, monkeypatch):
    short = gradients(*case(name))
    monkeypatch.setattr(_library, "call", lambda op, *args: op(*args))
    for ours, registered in zip(short, gradients(*case(name)), strict=True):
        assert ours.any() and torch.equal(ours, registered)


def test_an_input_without_a_gradient_changes_no_other(name):
    run, (first, *rest) = case(name)
    _, *expected = gradients(run, [first, *rest])
    found = gradients(lambda *leaves: run(first.detach(), *leaves), rest)
    for ours, full in zip(found, expected, strict=True):
        assert torch.equal(ours, full)


def test_forward_mode_is_refused_not_lost(name):
    run, leaves = case(name)
    expected = run(*leaves)
    first, *rest = (leaf.detach() for leaf in leaves)
    with forward_ad.dual_level():
        assert torch.equal(run(first, *rest), expected)
        dual = forward_ad.make_dual(first, torch.ones_like(first))
        with pytest.raises(NotImplementedError, match="forward mode"):
            run(dual, *rest)
    with pytest.raises(NotImplementedError, match=f"{name}.*forward mode"):
        torch.func.jvp(lambda x: run(x, *rest), (first,), (torch.ones_like(first),))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_call_can_be_saved(name, tmp_path):
    run, leaves = case(name)
    traced = torch.jit.trace(lambda *given: run(*given), tuple(leaves), strict=False)
    traced.save(str(tmp_path / "op.pt"))
    again = torch.jit.load(str(tmp_path / "op.pt"))(*leaves)
    assert torch.equal(again, run(*leaves))


def test_a_subclass_of_tensor_may_change_the_result(name):
    class Mine(torch.Tensor):
        pass

    run, (first, *rest) = case(name)
    expected = gradients(lambda *a: run(*a) * 2, (first, *rest))

    def changed(x, *others):
        y = run(x.as_subclass(Mine), *others)
        assert isinstance(y, Mine)
        return y.mul_(2)

    for ours, full in zip(gradients(changed, (first, *rest)), expected, strict=True):
        assert torch.equal(torch.Tensor(ours), full)
