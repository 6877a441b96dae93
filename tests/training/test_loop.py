"""The loop on a toy: limits, micro batches, kills and resumptions, processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from toy_task import Toy, train

from tokenflow.training import state as states
from tokenflow.training.run import RunConfig
from tokenflow.training.task import Moment
from tokenflow.training.world import World

SLOW = pytest.mark.slow
TOY = Path(__file__).parent.parent / "toy_task.py"


def recipe(**changes):
    values = {"batch": 8, "steps": 6, "save_every": 2, "log_every": 1}
    return RunConfig(**{**values, "tensorboard": False, **changes})


def read(run):
    """Every tensor of a run's current checkpoint."""
    folder = run / "checkpoints"
    path = folder / (folder / "current").read_text().strip()
    held = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {
        name: torch.zeros(tuple(entry.size), dtype=entry.properties.dtype)
        for name, entry in held.items()
    }
    dcp.load(tensors, checkpoint_id=path, no_dist=True)
    step, _ = states.as_facts(tensors.pop("facts"))
    return step["step"], tensors


def assert_same(one, two):
    assert one[0] == two[0] and one[1].keys() == two[1].keys()
    for name, value in one[1].items():
        assert torch.equal(value, two[1][name]), name


def events(run, name):
    lines = (run / "log.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == name]


def process(run, *, count=1, parallel="ddp", name="adam", resume=False, kill="never"):
    """Run the toy as a program; returns its exit status."""
    start = [sys.executable]
    if count > 1:
        start += ["-m", "torch.distributed.run", "--standalone"]
        start += ["--nproc-per-node", str(count)]
    words = [str(run), parallel, name, "resume" if resume else "new", kill]
    done = subprocess.run([*start, str(TOY), *words], capture_output=True, timeout=120)
    print(done.stderr.decode())  # pytest shows it where a test fails
    return done.returncode


def test_a_run_logs_judges_and_saves(tmp_path):
    task = Toy(recipe())
    facts = train(task, recipe(evaluate_every=4), tmp_path)
    assert facts["steps"] == 6 and facts["samples"] == 48 and facts["broken"] == 1
    assert task.judged == [4, 6]
    steps = events(tmp_path, "step")
    assert [e["step"] for e in steps] == [1, 2, 3, 4, 5, 6]
    assert "other/loss" not in steps[2] and "other/loss" in steps[3]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "current",
        "step-00000004",
        "step-00000006",
    ]


def test_a_run_learns(tmp_path):
    facts = train(Toy(recipe()), recipe(steps=200, save_every=0), tmp_path)
    assert abs(facts["answer"] - 6) < 2  # the sum of six ones; 0 at first


def test_a_new_run_does_not_write_over_another(tmp_path):
    train(Toy(recipe()), recipe(steps=1), tmp_path)
    with pytest.raises(FileExistsError, match="resume it, or name a new folder"):
        train(Toy(recipe()), recipe(steps=1), tmp_path)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_micro_batches_add_up_to_the_batch(tmp_path, name):
    one, four = Toy(recipe(), name=name), Toy(recipe(), name=name)
    train(one, recipe(steps=3), tmp_path / "one")
    train(four, recipe(steps=3, accumulate=4), tmp_path / "four")
    for a, b in zip(one.model.parameters(), four.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_recomputing_changes_nothing(tmp_path):
    kept, again = Toy(recipe()), Toy(recipe())
    train(kept, recipe(steps=3), tmp_path / "kept")
    train(again, recipe(steps=3, recompute=True), tmp_path / "again")
    for a, b in zip(kept.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"precision": "bfloat16"}, marks=SLOW),
        pytest.param({"recompute": True}, marks=SLOW),
    ],
)
def test_compiled_blocks_learn_the_same(tmp_path, changes):
    plain, made = Toy(recipe()), Toy(recipe())
    train(plain, recipe(steps=3, **changes), tmp_path / "plain")
    torch._dynamo.reset()  # what an earlier test compiled
    torch._dynamo.utils.counters.clear()
    train(made, recipe(steps=3, compile=True, **changes), tmp_path / "made")
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    for a, b in zip(plain.model.parameters(), made.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_average_is_judged_and_the_weights_go_on(tmp_path):
    task, seen = Toy(recipe()), []
    task.judge = lambda log, moment: seen.append(task.model[0].weight.clone()) or {}
    train(task, recipe(average=0.5), tmp_path)
    _, tensors = read(tmp_path)
    assert torch.equal(seen[-1], tensors["average/0.weight"])
    assert torch.equal(task.model[0].weight, tensors["part/model/0.weight"])
    assert not torch.equal(seen[-1], task.model[0].weight)


def test_a_time_limit_ends_a_run(tmp_path):
    facts = train(Toy(recipe()), recipe(steps=None, minutes=0.02), tmp_path)
    assert 1.2 <= 60 * facts["minutes"] < 10 and facts["steps"] > 2


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    task = Toy(recipe())
    with torch.no_grad():
        task.model[0].weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="losses must be finite.* at step 0"):
        train(task, recipe(), tmp_path)


def test_what_is_drawn_depends_on_seed_step_and_name_alone():
    def draw(step, *names):
        return Moment(step, 0.0, 7, World()).rng(*names).random()

    assert draw(3, "a", 1) == draw(3, "a", 1)
    assert len({draw(3, "a"), draw(4, "a"), draw(3, "b"), draw(3, "a", 1)}) == 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of one process that nothing befell."""
    run = tmp_path_factory.mktemp("whole")
    assert process(run) == 0
    return run


@pytest.mark.parametrize(
    "kill",
    ["3", "save-4", pytest.param("1", marks=SLOW), pytest.param("7", marks=SLOW)],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path, whole, kill):
    assert process(tmp_path, kill=kill) == -9
    if kill == "save-4":  # the whole one before it is what counts
        assert (tmp_path / "checkpoints" / "current").read_text() == "step-00000002\n"
    assert process(tmp_path, resume=True) == 0
    assert_same(read(whole), read(tmp_path))
    answers = [events(run, "end")[0]["answer"] for run in (whole, tmp_path)]
    assert answers[0] == answers[1]
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("kill", ["3", "7", "save-6"])
def test_two_killed_processes_go_on_as_if_they_had_not_been(tmp_path, kill, parallel):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert process(whole, count=2, parallel=parallel) == 0
    assert process(killed, count=2, parallel=parallel, kill=kill) != 0
    assert process(killed, count=2, parallel=parallel, resume=True) == 0
    assert_same(read(whole), read(killed))


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "name"), [("ddp", "muon"), ("fsdp", "adamw")])
def test_two_processes_learn_what_one_learns(tmp_path, parallel, name):
    assert process(tmp_path / "one", name=name) == 0
    assert process(tmp_path / "two", count=2, parallel=parallel, name=name) == 0
    (_, one), (_, two) = read(tmp_path / "one"), read(tmp_path / "two")
    for key, value in one.items():
        if key.startswith("part/model"):
            assert torch.allclose(value, two[key], atol=1e-5), key


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two(tmp_path):
    assert process(tmp_path, kill="5") == -9
    assert process(tmp_path, count=2, resume=True) == 0
    assert read(tmp_path)[0] == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": None}, "steps or run.minutes must be given"),
        ({"batch": 0}, "run.batch must be at least 1, got 0"),
        ({"minutes": -1.0}, "run.minutes must be at least 0"),
        ({"precision": "int8"}, "run.precision must be one of"),
        ({"average": 1.0}, r"run.average must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_recipe_out_of_range_says_so(change, words):
    with pytest.raises(ValueError, match=words):
        recipe(**change)


def test_a_batch_that_cannot_be_shared_says_so(tmp_path):
    with pytest.raises(ValueError, match="must be a multiple of 3, .* got 8"):
        train(Toy(recipe()), recipe(accumulate=3), tmp_path)
