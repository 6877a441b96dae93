"""What is prepared once and kept between calls, and never stale."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..ops.conv3x3 import pack
from ..ops.prepare import Prepared, prepare

_optimizer_steps = 0


@functools.cache
def _watch_optimizers() -> None:
    """Count the steps of every optimizer: fused ones leave version counters alone."""

    def count(optimizer: Any, args: Any, kwargs: Any) -> None:
        global _optimizer_steps
        _optimizer_steps += 1

    register_optimizer_step_post_hook(count)


class KeptBooks:
    """Prepares books once, and again whenever they may have changed.

    A change is seen by a tensor's version counter, address and layout, and any step of
    any optimizer counts as one: so loading, edits in place, replaced and moved books
    are met as they are. Edits through `.data` and by replayed CUDA graphs cannot be
    seen; `drop` after those. Copies and pickles start empty. On CUDA what is kept
    belongs to the stream that prepared it: another stream prepares anew, and a graph
    being captured records its own preparation.
    """

    def __init__(self) -> None:
        self._kept: tuple[list[Seen], int, Stream, Prepared] | None = None

    def drop(self) -> None:
        """Forget what was kept."""
        self._kept = None

    def get(
        self, *books: Tensor, normalize: bool, keep: bool = True
    ) -> Prepared | None:
        """Return the books ready for the ops; None for float64, which needs no such.

        Args:
            *books: One or two, as `tokenflow_ext.prepare` takes them.
            normalize: Likewise.
            keep: Whether to keep the result and to return a kept one.
        """
        if any(book.dtype == torch.float64 for book in books):
            return None
        # Without a version counter, or in a graph being traced, changes go unseen.
        if (
            not keep
            or torch.compiler.is_compiling()
            or any(book.is_inference() for book in books)
            or (books[0].is_cuda and torch.cuda.is_current_stream_capturing())
        ):
            return prepare(*books, normalize=normalize)
        if self._kept is not None:
            seen, steps, stream, ready = self._kept
            if (
                steps == _optimizer_steps
                and stream == _stream(books[0])
                and ready.normalize == normalize
                and all(map(_same, seen, books))
            ):
                return ready
        _watch_optimizers()
        # The detached books hold their memory, so that no other can take its address.
        # Looked at before they are read: what another thread changes then is seen.
        seen = [(book.detach(), book._version) for book in books]
        steps = _optimizer_steps
        with torch.inference_mode(False):
            ready = prepare(*books, normalize=normalize)
        self._kept = seen, steps, _stream(books[0]), ready
        return ready

    def __reduce__(self) -> tuple[type[KeptBooks], tuple[()]]:  # noqa: D105
        return KeptBooks, ()


class KeptPanels:
    """The panels of a convolution's weight for `conv3x3`, kept as `KeptBooks` keeps."""

    def __init__(self) -> None:
        self._kept: tuple[Seen, int, Tensor] | None = None

    def get(self, weight: Tensor) -> Tensor | None:
        """Return the panels; None where they would serve one call only."""
        if (
            torch.compiler.is_compiling()
            or weight.is_inference()
            or (weight.requires_grad and torch.is_grad_enabled())
        ):
            return None
        if self._kept is not None:
            seen, steps, panels = self._kept
            if steps == _optimizer_steps and _same(seen, weight):
                return panels
        _watch_optimizers()
        seen, steps = (weight.detach(), weight._version), _optimizer_steps
        with torch.inference_mode(False), torch.no_grad():
            panels = pack(seen[0])
        self._kept = seen, steps, panels
        return panels

    def __reduce__(self) -> tuple[type[KeptPanels], tuple[()]]:  # noqa: D105
        return KeptPanels, ()


Seen = tuple[Tensor, int]  # a book and its version when it was prepared
Stream = int | None


def _stream(book: Tensor) -> Stream:
    """Return the CUDA stream that work on `book` goes to now."""
    if not book.is_cuda:
        return None
    return int(torch.cuda.current_stream(book.device).cuda_stream)


def _same(seen: Seen, book: Tensor) -> bool:
    old, version = seen
    return (
        old.data_ptr() == book.data_ptr()
        and (old.shape, old.stride(), old.dtype, old.device)
        == (book.shape, book.stride(), book.dtype, book.device)
        and version == book._version
    )
