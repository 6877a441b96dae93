"""Which room may import which: the arrows, read off every import in the source.

    cli → training → evaluation → unified → {understanding, generation} → tokenizer
     └→ benchmark             └→ data                         tokenizer → tokenflow_ext

An arrow may be taken over several steps at once, never backwards. Kernels see no
Torch; models see no kernels, only functions; `tokenflow_ext` needs torch alone.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

import tokenflow

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "tokenflow_ext": ROOT / "tokenflow_ext",
    "tokenflow": ROOT / "python" / "tokenflow",
}
ARROWS = {
    "cli": {"training", "benchmark", "samples", "foreign"},
    "benchmark": {"generation", "samples"},
    "training": {"evaluation"},
    "evaluation": {"unified", "data"},
    "unified": {"understanding", "generation"},
    "understanding": {"tokenizer"},
    "generation": {"tokenizer"},
    "tokenizer": {"tokenflow_ext"},
    "samples": {"data"},
    "data": set(),
    "foreign": set(),
    "tokenflow_ext": set(),
}
# What a tokenizer is made of and read from is part of its room.
SAME_ROOM = {"config": "tokenizer", "checkpoint": "tokenizer", "__main__": "cli"}
OUTSIDE = {"bench", "tests", "examples"}
NEEDED = {"tokenflow_ext", "torch", *sys.stdlib_module_names}


def reach(room):
    """Every room that the arrows lead to from `room`, itself included."""
    found, waiting = set(), [room]
    while waiting:
        here = waiting.pop()
        if here not in found:
            found.add(here)
            waiting += ARROWS[here]
    return found


def room_of(module):
    """The room of a dotted module name; None for what every room may use."""
    top, *rest = tokenflow._HOME.get(module.removeprefix("tokenflow."), module).split(
        "."
    )
    if top == "tokenflow_ext":
        return top
    if not rest or (rest[0].startswith("_") and rest[0] not in SAME_ROOM):
        return None
    return SAME_ROOM.get(rest[0], rest[0])


def modules():
    """Our modules, dotted name -> path; a package is named with its __init__."""
    return {
        ".".join((package, *path.relative_to(folder).with_suffix("").parts)): path
        for package, folder in PACKAGES.items()
        for path in sorted(folder.rglob("*.py"))
    }


def imports(module, source):
    """Yield (line, dotted name) of each import in a module, nested ones too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: -node.level]
                base = ".".join([*above, *filter(None, [base])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def imported_by_name(source):
    """Yield the like for modules named in a string, to be loaded late."""
    ours = {module.removesuffix(".__init__") for module in modules()}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in ours - set(PACKAGES):
            yield node.lineno, node.value


def wrong_arrows(module, source):
    """Say which imports of a module are against the design."""
    room = room_of(module)
    found = {*imports(module, source)}
    if room is not None:  # the package itself names everybody's home
        found |= {*imported_by_name(source)}
    for line, name in sorted(found):
        top, _, rest = name.partition(".")
        where = f"{module}:{line} imports {name}"
        if top in OUTSIDE:
            yield f"{where}: nobody imports {top}"
        elif room == "tokenflow_ext" and top == "tokenflow":
            yield f"{where}: tokenflow_ext → tokenflow is no arrow"
        elif room == "tokenflow_ext" and top not in NEEDED:
            yield f"{where}: tokenflow_ext needs torch alone"
        elif top in PACKAGES and (other := room_of(name)) is not None:
            if room is None:
                yield f"{where}: what every room may use uses no room"
            elif other not in reach(room):
                yield f"{where}: {room} → {other} is no arrow"
            elif top != module.split(".")[0] and re.search(r"(^|\.)_[^_]", rest):
                yield f"{where}: private to {top}"


def test_every_import_follows_the_arrows():
    wrong = [
        sentence
        for module, path in modules().items()
        for sentence in wrong_arrows(module, path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_every_room_is_on_the_map():
    rooms = {room_of(module) for module in modules()} - {None}
    assert rooms <= set(ARROWS), f"new rooms: {rooms - set(ARROWS)}"


@pytest.mark.parametrize(
    "module, source, words",
    [
        ("tokenflow_ext.nn.a", "import tokenflow", "→ tokenflow is no arrow"),
        (
            "tokenflow_ext.a",
            "from tokenflow.config import X",
            "→ tokenflow is no arrow",
        ),
        ("tokenflow_ext.nn.__init__", "import numpy", "needs torch alone"),
        ("tokenflow.understanding.model", "from ..generation import m", "→ generation"),
        ("tokenflow.generation.a", "import tokenflow.understanding", "→ understanding"),
        ("tokenflow.tokenizer.model", "from tokenflow.data import x", "→ data"),
        ("tokenflow.data.a", "def f():\n  import tokenflow.tokenizer", "→ tokenizer"),
        ("tokenflow.data.__init__", "from tokenflow import Encoded", "→ tokenizer"),
        ("tokenflow.training.loop", "from tokenflow import cli", "→ cli"),
        ("tokenflow.tokenizer.model", "f('tokenflow.data.glyphs')", "→ data"),
        ("tokenflow.tokenizer.model", "from tokenflow_ext import _C", "private"),
        ("tokenflow.tokenizer.model", "import bench.harness", "nobody imports bench"),
        ("tokenflow._files", "from tokenflow import data", "uses no room"),
        ("tokenflow.cli.main", "from tests import conftest", "nobody imports tests"),
    ],
)
def test_a_wrong_arrow_is_named(module, source, words):
    assert words in " ".join(wrong_arrows(module, source))


@pytest.mark.parametrize(
    "module, source",
    [
        ("tokenflow.cli.main", "from tokenflow.tokenizer import scales"),
        ("tokenflow.training.loop", "from ..data.glyphs import f"),
        ("tokenflow.tokenizer.model", "from tokenflow_ext.nn import UpsampleConv"),
        ("tokenflow.tokenizer.__init__", "from .model import Encoded"),
        ("tokenflow_ext.ops.lookup", "from .. import _library; import math, torch"),
    ],
)
def test_a_right_arrow_passes(module, source):
    assert not [*wrong_arrows(module, source)]


def included(path):
    """Every name a C++ file includes, our headers followed to what they include."""
    seen, waiting = set(), [path]
    while waiting:
        text = waiting.pop().read_text()
        for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', text, re.M):
            if name not in seen and (ROOT / "csrc" / name).is_file():
                waiting.append(ROOT / "csrc" / name)
            seen.add(name)
    return seen


def kernel_files():
    kinds = ("*.cu", "*.cuh", "*_simd.cpp", "*_cpu.cpp")
    return sorted(p for kind in kinds for p in (ROOT / "csrc").rglob(kind))


@pytest.mark.parametrize("path", kernel_files(), ids=lambda p: p.name)
def test_kernels_see_no_torch(path):
    seen = {n for n in included(path) if re.match(r"(torch|ATen|c10|pybind11)/", n)}
    assert not seen, f"{path.relative_to(ROOT)} includes {sorted(seen)}"


def test_an_include_is_followed_to_torch():
    glue = included(ROOT / "csrc/ops/quantize/quantize.cpp")  # through common/glue.h
    assert any(name.startswith("torch/") for name in glue)


def test_our_includes_are_named_from_csrc():
    for path in (ROOT / "csrc").rglob("*.*"):
        for name in re.findall(r'#\s*include\s*"([^"]+)"', path.read_text()):
            assert (ROOT / "csrc" / name).is_file(), f"{path.name} includes {name}"
