"""What a user installs: the sdist holds the project, the wheel works by itself."""

import configparser
import os
import shutil
import subprocess
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
NOT_IN_SDIST = (".ci/", "bench/results/")


def files_of(archive, pattern):
    return [name for name in archive.namelist() if Path(name).match(pattern)]


def test_sdist_holds_every_tracked_file(unpacked):
    git = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if git.returncode:
        pytest.skip("not a git checkout: nothing says what is tracked")
    tracked = [f for f in git.stdout.split("\n") if (ROOT / f).is_file() and f]
    missing = [
        name
        for name in tracked
        if not name.startswith(NOT_IN_SDIST) and not (unpacked / name).is_file()
    ]
    assert len(tracked) > 20
    assert not missing


def test_sdist_holds_nothing_built(unpacked):
    built = [p for p in unpacked.rglob("*") if p.suffix in {".so", ".pyc", ".o"}]
    assert not built
    assert not (unpacked / "build").exists()
    assert not (unpacked / ".venv").exists()


@pytest.mark.parametrize("source", ["tokenflow_ext", "python/tokenflow"])
def test_wheel_holds_every_file_of_the_package(wheel, unpacked, source):
    package = Path(source).name
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith(f"{package}/")}
    wanted = {
        f"{package}/{path.relative_to(unpacked / source).as_posix()}"
        for path in (unpacked / source).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    compiled = {name for name in held if Path(name).match("tokenflow_ext/_C.*.so")}
    assert f"{package}/py.typed" in wanted
    assert held - compiled == wanted
    assert len(compiled) == (package == "tokenflow_ext")


def test_wheel_carries_weights_and_training_configs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert files_of(archive, "tokenflow/training/configs/*/*.yaml")
        assert files_of(archive, "tokenflow/weights/*/*.safetensors")
        assert files_of(archive, "tokenflow/weights/*/config.json")


def test_wheel_says_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = files_of(archive, "*.dist-info/METADATA")
        (commands,) = files_of(archive, "*.dist-info/entry_points.txt")
        licenses = {Path(n).name for n in files_of(archive, "*/licenses/*")}
        facts = Parser().parsestr(archive.read(metadata).decode())
        entries = configparser.ConfigParser()
        entries.read_string(archive.read(commands).decode())
    needed = [n for n in facts.get_all("Requires-Dist") if "extra ==" not in n]
    assert needed == ["torch>=2.11"]
    assert facts["License-Expression"] == "Apache-2.0"
    assert licenses == {"LICENSE", "NOTICE"}
    assert dict(entries["console_scripts"]) == {"tokenflow": "tokenflow.cli:main"}


@pytest.fixture(scope="session")
def away(clean_python, tmp_path_factory):
    """Run the clean Python in a folder of copied tests, with no compiler in reach."""
    folder = tmp_path_factory.mktemp("away")
    kept = [name for name in os.environ if name.startswith(("TOKENFLOW_", "HF_"))]
    env = {name: os.environ[name] for name in kept} | {
        "PATH": str(clean_python.parent),
        "HOME": str(folder),
        "TOKENFLOW_EXT_REQUIRE_KERNELS": "1",
        "TOKENFLOW_GOLDEN": os.environ.get(
            "TOKENFLOW_GOLDEN", str(ROOT.parent / "shared" / "golden")
        ),
    }
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "tests").mkdir()
    for source in (ROOT / "tests").glob("*.py"):
        if not source.name.startswith("test_"):
            shutil.copy(source, folder / "tests")
    compiles = shutil.ignore_patterns("test_cuda_on_cpu.py")  # needs the sources
    for room in ("ops", "nn"):
        shutil.copytree(ROOT / "tests" / room, folder / "tests" / room, ignore=compiles)

    def call(*arguments):
        return subprocess.run(
            [clean_python, *arguments],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
        )

    return call


def test_installed_wheel_is_what_is_imported(away, clean_python):
    code = """
import shutil, tokenflow, tokenflow_ext, tokenflow_ext._C
print(tokenflow.__file__, tokenflow_ext.__file__, tokenflow_ext._C.__file__)
print([c for c in ("c++", "g++", "clang++", "nvcc", "cc") if shutil.which(c)])
"""
    done = away("-c", code)
    assert done.returncode == 0, done.stderr
    files, compilers = done.stdout.strip().split("\n")
    venv = str(clean_python.parent.parent)
    assert all(file.startswith(venv) for file in files.split()), files
    assert compilers == "[]"


def test_installed_wheel_passes_the_tests_of_the_ops(away):
    done = away(
        "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "tests"
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout.strip().split("\n")[-1]


def test_installed_wheel_knows_its_command(away, clean_python):
    command = clean_python.parent / "tokenflow"
    assert command.is_file()
    done = away(str(command), "--help")
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
