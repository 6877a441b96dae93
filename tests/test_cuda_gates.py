"""What the compiler makes of the hot CUDA kernels, read off its own report.

A kernel is hot where a comment `// hot: HMMA LDSM` stands above it; the words are the
instructions that its machine code must have. Hot kernels keep their registers: no
spills, no stack, no local memory; and no wgmma waits for the one before (ptxas says so
in warnings of its own). Instructions are looked up where a cuobjdump is found, in the
CUDA toolkit or in Triton's wheel.
"""

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Architecture -> the instructions that a hot kernel may ask for there alone.
ARCHITECTURES = {"80": {"HMMA", "LDSM", "LDGSTS"}, "90a": {"HGMMA", "UBLKCP"}}
WGMMA_TROUBLE = r"C75\d\d"
HOT = re.compile(
    r"// hot:([^\n]*)\n(?:template[^\n]*\n)?__global__ void\s+"
    r"(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\("
)


def find_nvcc():
    """nvcc as CMakeLists.txt finds it, or None."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [Path(home) / "bin" for home in [*homes, "/usr/local/cuda"] if home]
    places = [os.environ.get("PATH", ""), *map(str, folders)]
    path = os.pathsep.join(places)
    return os.environ.get("CUDACXX") or shutil.which("nvcc", path=path)


def find_cuobjdump():
    """cuobjdump of the toolkit, else the one in Triton's wheel, or None."""
    if found := shutil.which("cuobjdump") or shutil.which(
        "cuobjdump", path="/usr/local/cuda/bin"
    ):
        return found
    triton = find_spec("triton")
    if triton is None or not triton.submodule_search_locations:
        return None
    home = Path(triton.submodule_search_locations[0])
    return next((str(p) for p in sorted(home.rglob("cuobjdump")) if p.is_file()), None)


def hot_kernels(source):
    """{kernel: instructions it must have} of one file and what it includes of ours."""
    return {name: set(words.split()) for words, name in HOT.findall(source)}


def sources():
    """The .cu files and, with each, the text it is made of."""
    for path in sorted(ROOT.glob("csrc/ops/*/*.cu")):
        text, waiting, seen = "", [path], set()
        while waiting:
            here = waiting.pop()
            if here in seen or not here.exists():
                continue
            seen.add(here)
            text += here.read_text()
            waiting += [
                ROOT / "csrc" / name
                for name in re.findall(r'#include "([^"]+\.cuh)"', here.read_text())
            ]
        yield path, text


def reports(log):
    """{mangled kernel: its part of what ptxas -v printed}."""
    found, name = {}, None
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match[1]
            found[name] = ""
        elif name:
            found[name] += line + "\n"
    return found


def is_kernel(mangled, name):
    """Is `mangled` that kernel or a template of it? A name follows its length."""
    return re.search(rf"{len(name)}{name}(?![a-z0-9_])", mangled) is not None


def troubles(report):
    """What a hot kernel must not have, as ptxas reports it."""
    for number, what in re.findall(r"(\d+) bytes (stack frame|spill \w+)", report):
        if number != "0":
            yield f"{number} bytes {what}"
    for number in re.findall(r"(\d+) bytes lmem", report):
        if number != "0":
            yield f"{number} bytes of local memory"


@pytest.fixture(scope="module")
def nvcc():
    found = find_nvcc()
    if found is None and os.environ.get("TOKENFLOW_CUDA") == "on":
        pytest.fail("nvcc not found, and TOKENFLOW_CUDA=on")
    if found is None:
        pytest.skip("nvcc not found: the CUDA kernels are not compiled here")
    return found


def compile_for(nvcc, path, architecture, folder):
    """Compile one file; return ptxas's report and the machine code."""
    cubin = folder / f"{path.stem}.{architecture}.cubin"
    command = [nvcc, "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xptxas=-v"]
    command += [f"-I{ROOT / 'csrc'}", "-cubin", "-o", str(cubin), str(path)]
    command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
    if architecture == "90a":
        command += ["-DTOKENFLOW_CUDA_90A"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr, cubin


def disassemble(cuobjdump, cubin):
    """{mangled kernel: its instructions}."""
    run = subprocess.run([cuobjdump, "-sass", cubin], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    parts = re.split(r"\n\s*Function : (\w+)\n", run.stdout)
    return {
        name: set(re.findall(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)", code))
        for name, code in zip(parts[1::2], parts[2::2], strict=True)
    }


def kept(kernel_words, architecture):
    """The instructions to look for: those no other architecture has for itself."""
    others = set().union(*(w for a, w in ARCHITECTURES.items() if a != architecture))
    return kernel_words - (others - ARCHITECTURES[architecture])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hot_kernels_keep_their_registers(nvcc, architecture, tmp_path):
    cuobjdump = find_cuobjdump()
    wrong, unseen = [], set()
    for path, text in sources():
        hot = hot_kernels(text)
        if not hot:
            continue
        log, cubin = compile_for(nvcc, path, architecture, tmp_path)
        wrong += [line for line in log.splitlines() if re.search(WGMMA_TROUBLE, line)]
        code = disassemble(cuobjdump, cubin) if cuobjdump else {}
        unseen |= set(hot)
        for mangled, report in reports(log).items():
            for name in (n for n in hot if is_kernel(mangled, n)):
                unseen.discard(name)
                used = re.search(r"Used (\d+) registers[^\n]*", report)
                print(f"sm_{architecture} {mangled}: {used[0] if used else report}")
                wrong += [f"{mangled}: {trouble}" for trouble in troubles(report)]
                if not cuobjdump or "HGMMA" in hot[name] and architecture != "90a":
                    continue  # an empty kernel there
                missing = kept(hot[name], architecture) - code[mangled]
                local = code[mangled] & {"LDL", "STL"}
                wrong += [f"{mangled}: no {word}" for word in sorted(missing)]
                wrong += [f"{mangled}: {word}" for word in sorted(local)]
    assert not unseen, f"marked as hot and not compiled: {sorted(unseen)}"
    assert not wrong, "\n".join(wrong)
    if cuobjdump is None:
        print("no cuobjdump found: instructions not looked at")


def test_the_marks_are_read():
    source = """
// hot: HMMA LDSM
template <int kSteps, bool kOffsets>
__global__ void __launch_bounds__(kMmaThreads) sweep_mma(Search s) {
// hot:
__global__ void plain(int n) {}
__global__ void cold(int n) {}
"""
    assert hot_kernels(source) == {"sweep_mma": {"HMMA", "LDSM"}, "plain": set()}


def test_a_spill_is_seen():
    log = """
ptxas info    : Compiling entry function '_ZN9tokenflow5sweepEv' for 'sm_90a'
ptxas info    : Function properties for _ZN9tokenflow5sweepEv
    16 bytes stack frame, 16 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers
"""
    (name, report), *_ = reports(log).items()
    assert is_kernel(name, "sweep") and not is_kernel(name, "weep")
    assert list(troubles(report)) == ["16 bytes stack frame", "16 bytes spill stores"]
