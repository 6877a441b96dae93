"""Every timed method computes what the op computes, and each op has what it must."""

import pytest
import torch

from tokenflow.benchmark import families, ops
from tokenflow.benchmark.harness import expand
from tokenflow.benchmark.method import KINDS, Method, Methods, load

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
EVERY = [(op, method.name) for op in ops.names() for method in load(op).method]


@pytest.mark.parametrize("op, name", EVERY, ids=lambda word: word)
def test_method_answers_the_question(op, name):
    module = load(op)
    method = module.method[name]
    if method.compiled:
        pytest.skip("compiling takes too long here")
    if method.missing():
        pytest.skip(f"{method.library} is not installed")
    truth = module.truth(module.make(module.TINY, CPU))
    with torch.set_grad_enabled(getattr(module, "GRADIENTS", False)):
        call = method.build(module.make(module.TINY, CPU))
        call()
        verdict = module.judge(call(), truth, module.make(module.TINY, CPU))
    assert verdict["right"]
    assert verdict.get("mismatches", 0) == 0


@pytest.mark.parametrize("op", ops.names())
def test_op_has_what_a_table_needs(op):
    module = load(op)
    kinds = {method.kind for method in module.method}
    assert "ours" in module.method and "published" in kinds <= set(KINDS)
    labels = [module.LABEL.format(**values) for values in module.CASES]
    assert len(set(labels)) == len(labels) > 0
    for values in module.CASES:
        assert all(amount > 0 for amount in module.work(values).values())
    for method in module.method:
        assert method.fills is None or method.fills in module.method


@pytest.mark.parametrize("op", ["quantize", "nearest", "pyramid_quantize"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_ours_is_exact_on_every_family(op, family):
    module = load(op)
    small = {**module.TINY, "k": 320} if family == "duplicates" else module.TINY
    case = module.make(module.in_family(small, family), CPU)
    found = module.method["ours"].build(case)()
    verdict = module.judge(found, module.truth(case), case)
    assert verdict["mismatches"] == 0 and verdict["judged"] > 0


def test_a_wrong_index_is_counted():
    module = load("quantize")
    case = module.make(module.TINY, CPU)
    truth = module.truth(case)
    found = truth["reference"].clone()
    found[:3] = torch.tensor([-1, (found[1] + 1) % 300, 300])
    verdict = module.judge(found, truth, case)
    assert verdict["mismatches"] == 3 and not verdict["right"]


def test_a_map_that_is_not_written_is_wrong():
    module = load("upsample_conv")
    case = module.make(module.TINY, CPU)
    found = torch.full(case.size, torch.nan)
    assert not module.judge(found, module.truth(case), case)["right"]


def test_families_multiply_the_cases_once():
    module = load("quantize")
    found = expand(module, ["random", "mini"])
    assert len(found) == 2 * len(module.CASES)
    assert {v["k"] for v in found if v["family"] == "mini"} == {4096}
    with pytest.raises(ValueError, match="family: must be one of"):
        expand(module, ["nonsense"])


def test_a_missing_library_is_named():
    method = Method("peer", lambda case: list, library="no_such_library")
    assert method.missing() == "no_such_library"
    assert Method("torch", lambda case: list).missing() == ""


def test_two_methods_cannot_share_a_name():
    method = Methods()
    method("once")(lambda case: list)
    with pytest.raises(ValueError, match="two methods named 'once'"):
        method("once")
        method("once")(lambda case: list)
