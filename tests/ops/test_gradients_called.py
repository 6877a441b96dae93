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


def test_only_what_is_asked_for_is_made(name):
    run, (first, *rest) = case(name)
    run(first.detach(), *rest).sum().backward()
    assert first.grad is None and all(leaf.grad is not None for leaf in rest)


def test_forward_mode_is_refused_not_lost(name):
    run, leaves = case(name)
    expected = run(*leaves)
    plain = [leaf.detach() for leaf in leaves]
    with forward_ad.dual_level():
        assert torch.equal(run(*plain), expected)
        plain[0] = forward_ad.make_dual(plain[0], torch.ones_like(plain[0]))
        with pytest.raises(NotImplementedError, match="forward mode"):
            run(*plain)


def test_a_tensor_with_rules_of_its_own_sees_the_op(name):
    seen = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    run, leaves = case(name)
    y = run(leaves[0].detach().as_subclass(Watched).requires_grad_(), *leaves[1:])
    assert f"tokenflow_ext.{name}.default" in seen and isinstance(y, Watched)
