"""What the project's own files say about each other, and about other packages."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tokenflow_ext
from tokenflow import foreign

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def pinned():
    lines = (ROOT / "constraints-dev.txt").read_text().split("\n")
    return {name_of(line): line for line in lines if re.match(r"\w", line)}


def test_every_pin_is_exact():
    loose = [line for line in pinned().values() if not re.fullmatch(r"\S+==\S+", line)]
    assert not loose


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_what_an_extra_needs_is_pinned(extra):
    needed = {name_of(r) for r in PROJECT["optional-dependencies"][extra]}
    assert needed - {"tokenflow-ext"} <= set(pinned())


def test_torch_is_installed_first():
    assert [*pinned()][0] == "torch"


def test_version_of_the_package_is_the_project_s():
    assert tokenflow_ext.__version__ == PROJECT["version"]


def test_no_foreign_tokenflow_here():
    assert foreign.conflict() is None


def test_foreign_tokenflow_is_one_sentence(tmp_path):
    info = tmp_path / "tokenflow-9.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenflow\n")
    (info / "top_level.txt").write_text("tokenflow\n")
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r});"
        "from tokenflow.foreign import conflict; print(conflict())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("\n") == 1
    assert "pip uninstall tokenflow" in done.stdout
