"""`tokenflow bench`, as a user runs it."""

import json

import pytest


def test_bench_prints_one_json_object(shell):
    words = ("--quick", "--op", "code_histogram", "--case", "N=8170", "--json")
    code, out, err = shell("bench", *words, "--method", "bincount")
    assert code == 0, err
    said = json.loads(out)
    assert {"cpu", "isa", "torch", "threads", "commit"} <= said["machine"].keys()
    (result,) = said["results"]
    assert result["case"] == "N=8170 K=32768"
    names = [method["name"] for method in result["methods"]]
    assert names == ["ours", "bincount", "ours, again"]
    for method in result["methods"]:
        assert method["problem"] is None
        assert method["verdict"] == {"mismatches": 0, "judged": 32768, "right": True}
        assert method["samples"] >= method["clean_samples"]
        assert method["extra_bytes"] is None or method["extra_bytes"] < 1 << 26


def test_bench_lists_what_there_is(run):
    code, out, _ = run("bench", "--list", "--op", "quantize", "--family", "all")
    assert code == 0
    assert out.startswith("quantize: ours, ours, unprepared, ")
    assert "\n  N=680 K=32768 32+8 random\n" in out and "16+8 mini\n" in out


@pytest.mark.parametrize(
    "words",
    [("--op", "nonsense"), ("--family", "nonsense"), ("--isa", "sse9")],
    ids=" ".join,
)
def test_bench_refuses_what_it_does_not_know(run, words):
    code, out, err = run("bench", *words)
    assert (code, out) == (2, "") and f"{words[0]}: {words[1]} is none of" in err


def test_bench_without_a_gpu_is_the_environment(run):
    code, out, err = run("bench", "--device", "cuda")
    assert (code, out) == (3, "") and "no GPU" in err
