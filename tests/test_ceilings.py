"""The loops that say what the machine can do: they count, and copy, what they say."""

import pytest
import torch

from tokenflow_ext import _info, ceilings

pytestmark = pytest.mark.skipif(_info.kernels is None, reason="no compiled kernels")


@pytest.mark.parametrize("loop", [ceilings.fma, ceilings.int8])
def test_operations_are_counted_by_the_round(loop, isa):
    once = loop(1)
    assert once > 0 and once % 2 == 0
    assert loop(1000) == 1000 * once


def test_the_instruction_is_named(isa):
    assert ceilings.int8_instruction()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 4097])
@pytest.mark.parametrize("around", [False, True])
def test_a_copy_is_a_copy(size, around, isa):
    room = torch.zeros(2, size + 128, dtype=torch.uint8)
    starts = [-row.data_ptr() % 64 for row in room]
    source, target = (r[s : s + size] for r, s in zip(room, starts, strict=True))
    source.copy_(torch.arange(size) % 251)
    assert ceilings.copy(source, target, 3, around=around) == 2 * size * 3
    assert torch.equal(source, target)
    assert room[1].sum() == target.sum()  # and nothing beside it


@pytest.mark.parametrize(
    "target, words",
    [
        (torch.zeros(8), "the 64 bytes of source"),
        (torch.zeros(2, 16)[:, ::2], "must be contiguous"),
        (torch.zeros(80, dtype=torch.uint8)[1:65], "multiple of 64 bytes"),
    ],
)
def test_what_cannot_be_copied_is_refused(target, words):
    source = torch.zeros(16)
    whole = torch.zeros(128, dtype=torch.uint8)
    if "multiple" in words:
        start = -whole.data_ptr() % 64
        source, target = whole[start : start + 64], whole[start + 1 :][:64]
    with pytest.raises(ValueError, match=words):
        ceilings.copy(source, target, 1, around=True)
