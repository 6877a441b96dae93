"""The CUDA kernels give the CPU's results, without a GPU: run on the CPU.

Every .cu file is compiled by the C++ compiler against tests/cuda_on_cpu, where a CUDA
thread is a fiber. That shows what the code means: indices, tails, barriers, atomics,
workspaces; not what nvcc or a GPU make of it. The sanitizers see races and steps
outside of memory.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "tests" / "cuda_on_cpu"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
FLAVOURS = {
    "plain": (["-O2"], []),
    "addresses": (["-O1", "-g", "-fsanitize=address,undefined"], ["brief"]),
    "races": (["-O1", "-g", "-fsanitize=thread"], ["races"]),
}


def without_launches(source):
    """kernel<<<how>>>(args) -> cuda_on_cpu::launch(how, [&] { kernel(args); })."""
    launch = re.compile(r"(\w+(?:<[\w, ]+>)?)\s*<<<(.*?)>>>\(", re.DOTALL)
    while match := launch.search(source):
        depth, end = 1, match.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(source[end], 0)
            end += 1
        call = f"{match[1]}({source[match.end() : end]}"
        replaced = f"cuda_on_cpu::launch({match[2]}, [&] {{ {call}; }})"
        source = source[: match.start()] + replaced + source[end:]
    return source


def build(folder, flags):
    """Compile the kernels of both kinds and check.cpp; return the program."""
    sources = [SHIM / "check.cpp", ROOT / "csrc" / "common" / "isa.cpp"]
    for path in sorted(ROOT.glob("csrc/ops/*/*.cu")):
        rewritten = folder / f"{path.stem}.cu.cpp"
        rewritten.write_text(without_launches(path.read_text()))
        sources.append(rewritten)
    sources += sorted(ROOT.glob("csrc/ops/*/*_cpu.cpp"))
    sources += sorted(ROOT.glob("csrc/ops/*/*_simd.cpp"))
    program = folder / "check"
    command = [COMPILER, "-std=c++20", "-ffp-contract=off", "-pthread", "-w"]
    command += ["-DTFX_ISA=portable", "-DTFX_CUDA_ON_CPU", "-DTOKENFLOW_CUDA_90A"]
    command += [f"-I{SHIM}", f"-I{ROOT / 'csrc'}", *flags]
    subprocess.run([*command, *map(str, sources), "-o", str(program)], check=True)
    return program


def test_launches_are_rewritten():
    source = "f<T, U>\n <<<g(n, 2), 64, 0,\n s>>>(a, h(b));"
    expected = "cuda_on_cpu::launch(g(n, 2), 64, 0,\n s, [&] { f<T, U>(a, h(b)); });"
    assert without_launches(source) == expected


@pytest.mark.slow
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_cuda_kernels_equal_cpu_kernels(flavour, tmp_path):
    flags, arguments = FLAVOURS[flavour]
    program = build(tmp_path, flags)
    run = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    assert "0 failed" in run.stdout


BARRIER = """
#include <cstdio>
#include <cuda_runtime.h>
static int shared[64];
void turn(int* out) {
  shared[threadIdx.x] = threadIdx.x;
  %s
  out[threadIdx.x] = shared[63 - threadIdx.x];
}
int main() {
  int out[64];
  cuda_on_cpu::launch(2, 64, 0, nullptr, [&] { turn(out); });
  std::puts(out[1] == 62 ? "right" : "wrong");
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("barrier", ["__syncthreads();", ""], ids=["there", "missing"])
def test_a_missing_barrier_is_seen(barrier, tmp_path):
    source, program = tmp_path / "turn.cpp", tmp_path / "turn"
    source.write_text(BARRIER % barrier)
    command = [COMPILER, "-std=c++20", "-w", f"-I{SHIM}", *FLAVOURS["races"][0]]
    subprocess.run([*command, source, "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    if barrier:
        assert run.returncode == 0, run.stderr
        assert run.stdout == "right\n"
    else:
        assert "data race" in run.stderr
