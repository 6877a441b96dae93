"""How every op is registered: schema, fallback, fake kernel, autograd.

One `torch.library.Library` for the namespace `tokenflow_ext`. The compiled kernels
register themselves for CPU and CUDA when `_C` is loaded; what is registered here as
the fallback stands where no kernel does, because the dispatcher prefers the more
specific key. So no caller ever asks whether kernels are available.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "tokenflow_ext"
_library = torch.library.Library(NAMESPACE, "DEF")


@functools.cache
def _warn_once(op: str) -> None:
    warnings.warn(
        f"tokenflow_ext.{op}: no compiled CUDA kernel here, using the torch fallback "
        "(same result, slower). tokenflow_ext.info() says what was built.",
        stacklevel=4,
    )


def define(
    schema: str,
    *,
    fallback: Callable[..., Any],
    fake: Callable[..., Any],
    tags: tuple[torch.Tag, ...] = (),
    has_kernels: bool = True,
) -> Any:
    """Define an op and return its callable.

    Args:
        schema: `name(Tensor x, ...) -> Tensor`, without the namespace. What an op
            writes into is named by keyword: `*, Tensor(a!) out) -> ()`.
        fallback: Plain torch implementation, the same results as the kernels.
        fake: Shapes and dtypes of the results, for tracing.
        tags: Torch tags of the op.
        has_kernels: Whether a CUDA tensor on the fallback is worth a warning.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag, *tags))

    @functools.wraps(fallback)
    def warned(*args: Any, **kwargs: Any) -> Any:
        if has_kernels and any(isinstance(a, torch.Tensor) and a.is_cuda for a in args):
            _warn_once(name)
        return fallback(*args, **kwargs)

    _library.impl(name, warned, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    if op._schema.is_mutable:
        _library.impl(name, _bump_versions(op), "ADInplaceOrView", with_keyset=True)
    return op


def _bump_versions(op: Any) -> Callable[..., Any]:
    """Let autograd see what an op writes into, as torch's own in-place ops do."""
    written = [a.name for a in op._schema.arguments if a.is_write]

    def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        for name in written:
            torch.autograd.graph.increment_version(kwargs[name])
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return op.redispatch(
                keyset & torch._C._after_ADInplaceOrView_keyset, *args, **kwargs
            )

    return kernel


def float64_on_cpu(fallback: Callable[..., Any]) -> Callable[..., Any]:
    """Take a fallback that needs float64 to the CPU from devices that have none."""

    @functools.wraps(fallback)
    def moved(*args: Any) -> Any:
        device = next(a.device for a in args if isinstance(a, torch.Tensor))
        if device.type != "mps":
            return fallback(*args)
        here = [a.cpu() if isinstance(a, torch.Tensor) else a for a in args]
        result = fallback(*here)
        if isinstance(result, tuple):
            return tuple(r.to(device) for r in result)
        return result.to(device)

    return moved


_gradients: dict[Any, type[torch.autograd.Function]] = {}


def autograd(
    op: Any, backward: Callable[..., Any], setup_context: Callable[..., Any]
) -> None:
    """Register the gradient of an op made by `define`.

    Twice: with torch, for tracing and for whoever names the op in `torch.ops`, and as a
    function that `call` takes at once. What torch makes of it takes arguments apart and
    together again, which costs more than the gradient of a small map.
    """
    torch.library.register_autograd(
        op, backward, setup_context=setup_context, lib=_library
    )

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            result = op(*args)
        setup_context(ctx, args, result)
        return result

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    name = op._schema.name.partition("::")[2]
    _gradients[op] = type(name, (torch.autograd.Function,), methods)


def no_second_gradient(op: Any, name: str, float64: str) -> None:
    """Register that a gradient, itself an op, has none: asking for one is an error.

    Args:
        op: The gradient, made by `define`.
        name: Of the op whose gradient it is.
        float64: What must be float64 for the reference, which has one.
    """

    def refuse(ctx: Any, *grads: torch.Tensor) -> None:
        raise NotImplementedError(
            f"{name}: the gradient has no gradient of its own; with {float64}, which "
            "the reference reads, it has"
        )

    autograd(op, refuse, lambda ctx, inputs, output: None)


def call(op: Any, *args: Any) -> Any:
    """`op(*args)`, past what torch made of its gradient.

    Tracing, transforms and subclasses of tensors see the op as they expect it.

    Raises:
        NotImplementedError: A derivative of forward mode is asked for, which torch
            would drop.
    """
    functorch = torch._C._functorch
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return op(*args)
    if functorch.peek_interpreter_stack() is not None:
        forward_mode = functorch.TransformType.Jvp
        if any(f.key() == forward_mode for f in functorch.get_interpreter_stack()):
            raise NotImplementedError(f"{op}: has no derivative of forward mode")
        return op(*args)
    if torch.overrides.has_torch_function(args):
        return op(*args)
    asked = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
    if asked or torch.autograd.forward_ad._current_level >= 0:
        return _gradients[op].apply(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)
