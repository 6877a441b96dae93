"""The tokenizer's run, killed anywhere: resumed, it ends as if nothing had been.

"As if" is meant to the bit: weights, optimizers, averages, codebook counters, the
model that is written, and every line of the log but its clock.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import whole_runs
import yaml
from tiny_recipe import TINY, values

from tokenflow.training.config import RECIPE
from tokenflow.training.log import read as read_log

SLOW = pytest.mark.slow
KILLED = -signal.SIGKILL


def sections(**changes):
    """Eight steps with all that can happen in them: books set before steps 0 and 3,
    entries woken, a discriminator from step 4 on, looks at held-out pictures."""
    base = {
        "data": {"source": "scenes", "heldout_pictures": 4},
        "loss": {"adversarial_weight": 0.5, "adversarial_start": 5},
        "codebook": {"start_at": [0, 3]},
        "run": {"steps": 8, "save_every": 2, "evaluate_every": 3},
    }
    for name, change in changes.items():
        old = base.get(name, {})
        base[name] = {**old, **change} if isinstance(change, dict) else change
    return values(**base)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(sections, count=1) is a run that nothing befell, made once."""
    made = {}

    def make(sections, count=1, **options):
        key = repr((sections, count, options))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole") / "run"
            status = whole_runs.run(sections, made[key], count=count, **options)
            assert status == [0] * count, whole_runs.said(made[key])
        return made[key]

    return make


def kill(sections, folder, hurt, rank=0, **options):
    """Go on, or begin, and be killed there."""
    how = {"hurt": hurt, "rank": rank, "resume": True, **options}
    status = whole_runs.run(sections, folder, **how)
    assert status[rank] == KILLED, whole_runs.said(folder)


def go_on(sections, folder, count=1, **options):
    """Go on to the end."""
    status = whole_runs.run(sections, folder, resume=True, count=count, **options)
    assert status == [0] * count, whole_runs.said(folder)


def test_a_killed_run_ends_as_the_whole_one(tmp_path, whole):
    one, folder = whole(sections()), tmp_path / "run"
    kill(sections(), folder, "step-7")
    assert whole_runs.current(folder) == 6
    go_on(sections(), folder)
    whole_runs.assert_same(one, folder)
    events = {e["step"]: e for e in read_log(one) if e["event"] == "step"}
    assert events[7]["revived"] > 0  # in the step that is made again
    assert "discriminator/loss" in events[5] and "discriminator/loss" not in events[4]


EVERYWHERE = [  # where a run is killed each time it goes on, and the checkpoint it has
    ("start-1", None),  # before the first step
    ("place-1", None),  # in the first checkpoint
    ("start-2", 2),
    ("judge-1", 2),  # between two checkpoints
    ("step-2", 2),  # the discriminator joins next
    ("name-1", 2),  # the checkpoint of step 4 is there, but not the current one
    ("step-3", 4),  # the discriminator has joined
    ("step-1", 4),
    ("place-1", 4),
    ("step-4", 6),
    ("finish-1", 8),
    ("judge-1", 8),  # at the end, the model is written
]


@SLOW
@pytest.mark.parametrize("count", [1, 2])
def test_so_does_one_that_is_killed_everywhere(tmp_path, whole, count):
    folder = tmp_path / "run"
    for turn, (hurt, saved) in enumerate(EVERYWHERE):
        # the first process alone puts checkpoints in place
        rank = turn % count if hurt[:5] not in ("place", "name-") else 0
        kill(sections(), folder, hurt, rank, count=count)
        assert whole_runs.current(folder) == saved, (hurt, whole_runs.said(folder))
    go_on(sections(), folder, count)
    whole_runs.assert_same(whole(sections(), count), folder)
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"current", "step-00000006", "step-00000008"}


@SLOW
@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"codebook": {"learning": "ema"}}, 1),
        ({"codebook": {"start": "kmeans"}}, 1),
        ({"codebook": {"start": "kmeans"}}, 2),
        ({"optimizer": {"name": "muon"}, "run": {"accumulate": 2}}, 1),
        ({"run": {"parallel": "fsdp"}}, 2),
    ],
    ids=str,
)
def test_so_it_is_however_the_tokenizer_learns(tmp_path, whole, changes, count):
    folder, changed = tmp_path / "run", sections(**changes)
    for hurt in ("start-2", "step-5"):  # of steps 2 to 6
        kill(changed, folder, hurt, count=count)
    go_on(changed, folder, count)
    whole_runs.assert_same(whole(changed, count), folder)


@SLOW
@pytest.mark.parametrize("count", [1, 2])
def test_so_it_is_for_the_decoder_alone(tmp_path, whole, count):
    init = str(whole(sections()) / "model")
    tuned = sections(init=init, train="pixel_decoder")
    for hurt in ("average-4", "place-1", "average-4"):
        kill(tuned, tmp_path / "run", hurt, count=count)
    go_on(tuned, tmp_path / "run", count)
    whole_runs.assert_same(whole(tuned, count), tmp_path / "run")


TEACHER = {
    "model": {
        "encoder": {
            "kind": "clip",
            "width": 32,
            "layers": 1,
            "heads": 2,
            "patch": 8,
            "image_size": 32,
        },
        "image_size": 32,
        "width": 32,
        "text": {"width": 16, "layers": 1, "heads": 2, "length": 24},
        "captions": 50,
        "vocabulary": 300,
    },
    "data": {"source": "scenes", "heldout_pictures": 8},
    "run": {
        "batch": 4,
        "steps": 6,
        "save_every": 2,
        "evaluate_every": 3,
        "log_every": 1,
        "tensorboard": False,
    },
}


@SLOW
@pytest.mark.parametrize("count", [1, 2])
def test_so_it_is_for_a_teacher(tmp_path, whole, count):
    options = {"task": "teacher", "count": count}
    for hurt in ("average-1", "place-1", "average-4", "average-1"):
        kill(
            TEACHER,
            tmp_path / "run",
            hurt,
            count - 1 if hurt[0] == "a" else 0,
            **options,
        )
    go_on(TEACHER, tmp_path / "run", **options)
    whole_runs.assert_same(whole(TEACHER, **options), tmp_path / "run")


@SLOW
@pytest.mark.parametrize("count", [1, 2])
def test_kills_at_random_moments_add_up_to_nothing(tmp_path, whole, count):
    folder, rng = tmp_path / "run", random.Random()
    start = time.monotonic()
    assert not any(whole_runs.run(sections(), tmp_path / "timed", count=count))
    usual = time.monotonic() - start
    for tries in range(40):
        processes = whole_runs.begin(sections(), folder, count=count, resume=True)
        victim = rng.choice(processes)
        victim.join(rng.uniform(0, usual) * (1 + tries / 8))
        if victim.is_alive():
            victim.kill()
        status = whole_runs.end(processes)
        assert not any(status) or KILLED in status, whole_runs.said(folder)
        if not any(status):
            break
    print("kills", tries)  # shown where this fails
    assert not any(status)
    whole_runs.assert_same(whole(sections(), count), folder)


@SLOW
def test_so_it_is_on_the_command_line_with_torchrun(tmp_path, whole):
    """One of two processes is killed from outside; the same command goes on."""
    folder, recipe = tmp_path / "run", tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(sections()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tokenflow", "train", "tokenizer"]
    command += [str(recipe), "--out", str(folder), "--resume", "auto"]
    for times in (1, 2):
        with (tmp_path / f"run.{times}.txt").open("w") as said:
            torchrun = subprocess.Popen(command, stdout=said, stderr=said)
        if times == 1:
            wait_for_step(folder, 3)
            found = subprocess.check_output(["pgrep", "-P", str(torchrun.pid)])
            os.kill(int(found.split()[-1]), signal.SIGKILL)
        failed = torchrun.wait(240) != 0
        assert failed == (times == 1), whole_runs.said(folder)
    whole_runs.assert_same(whole(sections(), 2), folder)


@SLOW
@pytest.mark.parametrize("counts", [(1, 2), (2, 1)], ids=str)
def test_a_run_goes_on_with_more_or_fewer_processes(tmp_path, whole, counts):
    changes = {"discriminator": {"norm": "group"}, "codebook": {"revive_after": 0}}
    before, after = counts
    folder = tmp_path / "run"
    one = sections(**changes)
    kill(one, folder, "step-5", count=before)
    go_on(one, folder, after)
    assert whole_runs.current(folder) == 8
    losses = [
        [e["reconstruction"] for e in whole_runs.told(run) if "reconstruction" in e]
        for run in (whole(one), folder)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def wait_for_step(folder, step):
    """Return when a line of the log says so."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        begun = (folder / "log.jsonl").is_file()
        if begun and any(e.get("step") == step for e in read_log(folder)):
            return
        time.sleep(0.01)
    raise AssertionError(whole_runs.said(folder))


@SLOW
@pytest.mark.parametrize(
    ("number", "count", "told", "workers"),
    [
        (signal.SIGINT, 1, 0, 1),
        (signal.SIGTERM, 1, 0, 1),
        (signal.SIGTERM, 2, 0, 0),
        (signal.SIGTERM, 2, 1, 1),
    ],
    ids=str,
)
def test_a_run_that_is_asked_to_stop_saves_first(
    tmp_path, number, count, told, workers
):
    """A process group is asked, as a terminal does, with its readers of pictures.

    Each process has one of its own here: of two, one hears of it, and tells the other.
    """
    folder, data = tmp_path / "run", {"workers": workers}
    long = sections(data=data, run={"steps": 10_000, "save_every": 0})
    processes = whole_runs.begin(long, folder, count=count)
    wait_for_step(folder, 2)
    os.killpg(processes[told].pid, number)
    assert whole_runs.end(processes) == [128 + number] * count, whole_runs.said(folder)
    assert "Traceback" not in whole_runs.said(folder)
    stop = next(e for e in read_log(folder) if e["event"] == "stop")
    assert stop["step"] == whole_runs.read(folder)[0] and stop["signal"] == number


@SLOW
@pytest.mark.parametrize(("count", "full"), [(1, 0), (2, 0), (2, 1)])
def test_a_checkpoint_that_one_process_cannot_write_fails_on_all(
    tmp_path, whole, count, full
):
    folder = tmp_path / "run"
    status = whole_runs.run(sections(), folder, count=count, hurt="full-2", rank=full)
    assert status == [1] * count
    for rank in range(count):
        said = (tmp_path / f"run.{rank}.txt").read_text()
        assert "could not write" in said and "File too large" in said, said
        assert "the checkpoint before it is whole" in said
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"current", "step-00000002"}
    go_on(sections(), folder, count)
    whole_runs.assert_same(whole(sections(), count), folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": {"adversarial_weight": 0.0}}, "has not, optimizer/discriminator"),
        ({"codebook": {"learning": "ema"}}, "lacks kept/codebook/sizes"),
        ({"run": {"average": 0.0}}, "holds, and this run has not, average/"),
        ({"model": {**TINY, "codebook_size": 64}}, "in another shape average/quant"),
        ({"optimizer": {"name": "muon"}}, "model's optimizer, Muon; .* with AdamW"),
    ],
    ids=["discriminator", "ema", "average", "size", "optimizer"],
)
def test_a_recipe_that_does_not_fit_the_checkpoint_says_how(
    tmp_path, whole, changes, words
):
    from tiny_recipe import recipe

    from tokenflow.training.tokenizer import train_tokenizer

    folder = tmp_path / "run"
    shutil.copytree(whole(sections()), folder)
    before = (folder / RECIPE).read_text()
    other = sections(**{**changes, "run": {"steps": 9, **changes.get("run", {})}})
    with pytest.raises(ValueError, match=words):
        train_tokenizer(recipe(**other), folder, resume=True)
    assert (folder / RECIPE).read_text() == before  # and it can still go on
