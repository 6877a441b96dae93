"""The sdist of this checkout, the wheel made of it, and a clean place to use it.

The chain is what a user walks: checkout → sdist → unpacked → wheel → an environment
without the checkout and without a compiler.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command, **options):
    """Run a command; its output becomes the failure's."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, (
        f"{command}\n{done.stdout[-6000:]}{done.stderr[-6000:]}"
    )
    return done.stdout


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    """The source distribution, as a file."""
    folder = tmp_path_factory.mktemp("sdist")
    tool = (sys.executable, "-m", "build", "--sdist", "--no-isolation")
    run(*tool, "--outdir", folder, ROOT)
    (file,) = folder.glob("*.tar.gz")
    return file


@pytest.fixture(scope="session")
def unpacked(sdist, tmp_path_factory):
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    return top


@pytest.fixture(scope="session")
def wheel(unpacked, tmp_path_factory):
    """The wheel made of the unpacked sdist; its CPU kernels, unless told otherwise."""
    folder = tmp_path_factory.mktemp("wheel")
    tool = (sys.executable, "-m", "build", "--wheel", "--no-isolation")
    cuda = os.environ.get("TOKENFLOW_CUDA", "off")  # make test builds CUDA kernels
    run(*tool, "--outdir", folder, unpacked, env=os.environ | {"TOKENFLOW_CUDA": cuda})
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="session")
def clean_python(wheel, tmp_path_factory):
    """The Python of a new environment that holds the wheel.

    Torch and the rest are lent to it by links, each package but ours, so that nothing
    of the checkout or of its editable build can stand in for the wheel.
    """
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    tool = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    run(*tool, "--no-index", "--no-deps", wheel)
    lent = folder / "lent"
    lent.mkdir()
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            ours = ("tokenflow", "_editable_skbc_tokenflow", "__pycache__")
            if not entry.name.startswith(ours) and entry.suffix != ".pth":
                (lent / entry.name).symlink_to(entry)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    Path(site.strip(), "lent.pth").write_text(f"{lent}\n")
    return python
