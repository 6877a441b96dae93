"""What every test of the tokenizer runs under."""

import pytest
import torch


@pytest.fixture(autouse=True)
def whole_float32():
    """Keep convolutions on a GPU in float32: TF32 is off by 1e-3, not by 1e-5."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
