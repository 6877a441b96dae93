"""Fixtures every test may use: where the tensors live, and the recorded cases."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(os.environ.get("TOKENFLOW_GOLDEN", ROOT.parent / "shared" / "golden"))

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


class Golden:
    """One recorded case: `case["in/x"]` as a tensor, `case.meta` as a dict."""

    def __init__(self, path):
        self.arrays = np.load(path)
        self.meta = json.loads(str(self.arrays["meta"]))

    def __getitem__(self, name):
        array = self.arrays[name]
        if array.dtype == np.float16:  # stored narrow, meant as float32
            array = array.astype(np.float32)
        return torch.from_numpy(np.array(array))

    def __contains__(self, name):
        return name in self.arrays

    def names(self, prefix=""):
        return [n for n in self.arrays.files if n.startswith(prefix)]

    def text(self, name):
        """A JSON entry such as out/sd_keys."""
        return json.loads(str(self.arrays[name]))

    def weights(self):
        """The stored upstream state dict, without the sd/ prefix."""
        return {n[3:]: self[n] for n in self.names("sd/")}


@pytest.fixture(scope="session")
def emoji_font():
    """Path of the font that training pictures are drawn with; CI must have it."""
    from tokenflow.data import glyphs

    try:
        return glyphs.font_path()
    except FileNotFoundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def golden():
    """golden("msvq_b224") loads a recorded case, or skips where there is none."""

    def load(name):
        path = GOLDEN / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"recorded case {name} not found; set TOKENFLOW_GOLDEN")
        return Golden(path)

    return load


def _isas():
    from tokenflow_ext import _info

    return _info.kernels.available_isas() if _info.kernels else ["fallback"]


@pytest.fixture(params=_isas())
def isa(request):
    """Run the CPU kernels with each instruction set that this machine has."""
    from tokenflow_ext import _info

    if _info.kernels is None:
        yield "fallback"
        return
    _info.kernels.force_isa(request.param)
    yield request.param
    _info.kernels.force_isa("")


@pytest.fixture
def threads():
    """threads(n) sets torch's thread count; it is put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads):
    """For tests of tensors so small that a second thread costs more than it brings."""
    threads(1)
