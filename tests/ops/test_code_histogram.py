"""code_histogram counts what is inside, on any number of threads."""

import pytest
import torch

import tokenflow_ext as tfx
from tokenflow_ext import reference
from tokenflow_ext.ops import code_histogram as room
from tokenflow_ext.testing import make_indices


@pytest.mark.parametrize("shape", [(0,), (), (1,), (1000,), (3, 5, 7)])
@pytest.mark.parametrize("num_codes", [1, 7, 300])
def test_code_histogram_is_the_reference(shape, num_codes, device):
    indices = make_indices(shape, num_codes, 0, device)
    expected = reference.code_histogram(indices, num_codes)
    assert torch.equal(tfx.code_histogram(indices, num_codes), expected)
    assert torch.equal(room._fallback(indices.reshape(-1), num_codes), expected)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_change_nothing(count, threads):
    # Long enough for each thread to count into a histogram of its own.
    indices = make_indices((5000,), 50, 1)
    threads(count)
    found = tfx.code_histogram(indices, 50)
    assert torch.equal(found, reference.code_histogram(indices, 50))


def test_a_case_worked_by_hand(device):
    indices = torch.tensor([[2, 0, 2], [-1, 3, 2]], device=device)
    assert tfx.code_histogram(indices, 3).tolist() == [1, 0, 3]
    far = torch.tensor([2**62, -(2**62), 1], device=device)
    assert tfx.code_histogram(far, 2).tolist() == [0, 1]


def test_any_strides_and_integers(device):
    indices = make_indices((40, 30), 9, 2, device)
    expected = reference.code_histogram(indices, 9)
    assert torch.equal(tfx.code_histogram(indices.T, 9), expected)
    assert torch.equal(tfx.code_histogram(indices.int(), 9), expected)
    part = indices[:, ::3]
    expected = reference.code_histogram(part.contiguous(), 9)
    assert torch.equal(tfx.code_histogram(part, 9), expected)


def test_opcheck(device):
    indices = make_indices((20,), 6, 3, device)
    torch.library.opcheck(room._code_histogram, (indices, 6))


def test_compile_gives_equal_counts(device):
    compiled = torch.compile(tfx.code_histogram, fullgraph=True, dynamic=True)
    for n, num_codes in ((10, 4), (33, 9)):
        indices = make_indices((n,), num_codes, n, device)
        expected = tfx.code_histogram(indices, num_codes)
        assert torch.equal(compiled(indices, num_codes), expected)


def test_bad_input_is_named():
    with pytest.raises(
        TypeError, match="code_histogram: indices must be .*torch.float32"
    ):
        tfx.code_histogram(torch.zeros(3), 4)
    with pytest.raises(ValueError, match="num_codes must be at least 1, got 0"):
        tfx.code_histogram(torch.zeros(3, dtype=torch.int64), 0)
