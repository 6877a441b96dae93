"""Checkpoints: whole or not at all, and nothing missing goes unseen."""

import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from training_rooms import Room

from tokenflow.training import state as states
from tokenflow.training.state import Checkpoints
from tokenflow.training.world import World


@pytest.fixture
def kept(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", World(), keep=2)


def test_what_was_saved_is_read(kept):
    kept.save(3, {"a": torch.arange(4.0), "b": torch.tensor(5)})
    into = {"a": torch.zeros(4), "b": torch.tensor(0)}
    kept.load(kept.current(), into)
    assert into["a"].tolist() == [0, 1, 2, 3] and into["b"] == 5
    assert kept.current().name == "step-00000003"


def test_only_the_newest_stay(kept):
    for step in (1, 2, 3, 10):
        kept.save(step, {"a": torch.zeros(1)})
    names = sorted(p.name for p in kept.folder.glob("step-*"))
    assert names == ["step-00000003", "step-00000010"]


@pytest.mark.parametrize(
    ("into", "words"),
    [
        ({}, "it holds, and this run has not, a"),
        ({"a": (4,), "b": (1,)}, "it lacks b"),
        ({"a": (5,)}, "it holds in another shape a"),
    ],
)
def test_a_part_too_few_or_too_many_is_an_error(kept, into, words):
    kept.save(1, {"a": torch.ones(4)})
    with pytest.raises(ValueError, match=words):
        kept.load(kept.current(), {k: torch.zeros(v) for k, v in into.items()})


def test_a_full_disk_leaves_the_last_checkpoint(kept, monkeypatch):
    kept.save(1, {"a": torch.ones(4)})

    def half(tensors, checkpoint_id, **options):
        checkpoint_id.mkdir(parents=True)
        (checkpoint_id / "__0_0.distcp").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states.dcp, "save", half)
    with pytest.raises(OSError, match="could not write .*No space left on device"):
        kept.save(2, {"a": torch.zeros(4)})
    into = {"a": torch.zeros(4)}
    kept.load(kept.current(), into)
    assert into["a"].tolist() == [1, 1, 1, 1]
    assert {p.name for p in kept.folder.iterdir()} == {"current", "step-00000001"}


FULL = """
import sys, torch
from pathlib import Path
from tokenflow.training.state import Checkpoints
from tokenflow.training.world import World
kept = Checkpoints(Path(sys.argv[1]) / "checkpoints", World())
kept.save(1, {"a": torch.ones(1000)})
try:
    kept.save(2, {"a": torch.zeros(1000000)})
except OSError as error:
    print(error)
into = {"a": torch.zeros(1000)}
kept.load(kept.current(), into)
print(into["a"].sum().item(), *sorted(p.name for p in kept.folder.iterdir()))
"""


@pytest.mark.slow
def test_a_disk_that_fills_leaves_the_last_checkpoint(tmp_path):
    """On a real file system of one MiB, where a user may mount one."""
    mount = 'mount -t tmpfs -o size=1m none "$1" && '
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*command, mount + "true", "-", tmp_path]).returncode:
        pytest.skip("no tmpfs may be mounted here")
    words = [*command, mount + '"$2" -c "$3" "$1"', "-", tmp_path, sys.executable, FULL]
    done = subprocess.run(words, capture_output=True, text=True)
    message, left = done.stdout.splitlines()
    assert "No space left on device, with 0.0 MiB of the disk free" in message
    assert left == "1000.0 current step-00000001"


def test_what_is_left_of_a_later_step_never_replaces_the_current_one(tmp_path):
    kept = Checkpoints(tmp_path, World(), keep=1)
    kept.save(4, {"a": torch.zeros(1)})
    shutil.copytree(tmp_path / "step-00000004", tmp_path / "step-00000008")
    kept.save(5, {"a": torch.zeros(1)})  # the run went on from 4, not from 8
    assert kept.current().name == "step-00000005"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["current", "step-00000005"]


def test_a_step_can_be_saved_again(kept):
    for value in (1.0, 2.0):
        kept.save(3, {"a": torch.full((2,), value)})
    into = {"a": torch.zeros(2)}
    kept.load(kept.current(), into)
    assert into["a"].tolist() == [2, 2]
    assert {p.name for p in kept.folder.iterdir()} == {"current", "step-00000003"}


def adam(kind=torch.optim.Adam):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = kind([weight], lr=0.1)
    weight.grad = torch.ones(2)
    optimizer.step()
    return weight, optimizer


def test_an_optimizer_must_have_all_of_its_memory_back(tmp_path):
    weight, optimizer = adam()
    known = states.memory_of(optimizer)
    states.check_memory(tmp_path, "model", optimizer, known)
    states.check_memory(tmp_path, "model", adam(torch.optim.AdamW)[1], known)
    del optimizer.state[weight]["exp_avg"]
    with pytest.raises(ValueError, match="gave back 2 of .'exp_avg_sq', 'step'"):
        states.check_memory(tmp_path, "model", optimizer, known)
    other = torch.optim.SGD([weight], lr=0.1)
    with pytest.raises(ValueError, match="model's optimizer, SGD; .* with Adam"):
        states.check_memory(tmp_path, "model", other, known)


@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata"])
def test_a_damaged_checkpoint_is_an_error(kept, file):
    path = kept.save(1, {"a": torch.ones(400)})
    whole = (path / file).read_bytes()
    (path / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="could not read"):
        kept.load(path, {"a": torch.zeros(400)})


def test_a_checkpoint_that_is_gone_is_an_error(kept):
    shutil.rmtree(kept.save(1, {"a": torch.ones(4)}))
    with pytest.raises(FileNotFoundError, match="current names .*step-00000001"):
        kept.current()


def test_a_checkpoint_that_is_not_named_is_no_fresh_start(kept):
    """Killed before the first one was named, or the name was lost."""
    assert kept.current() is None
    for step in (9, 10):
        kept.save(step, {"a": torch.ones(4)})
    (kept.folder / "current").unlink()
    assert kept.current().name == "step-00000010"


def test_a_checkpoint_is_in_place_before_it_is_the_current_one(kept, monkeypatch):
    replace, found = os.replace, []

    def look(source, target):  # whoever is killed here leaves what is found
        replace(source, target)
        found.append(kept.current().name)

    monkeypatch.setattr(os, "replace", look)
    for step in (1, 2):
        kept.save(step, {"a": torch.ones(4)})
    assert [name[-1] for name in found] == ["1", "1", "1", "2"]


@pytest.mark.parametrize(
    ("place", "words"), [("file", "Not a directory"), ("folder", "division by zero")]
)
def test_what_the_first_process_cannot_do_fails_on_all(
    tmp_path, monkeypatch, place, words
):
    """It makes the folder, and puts the checkpoint in its place."""
    monkeypatch.setattr(states.dcp, "save", lambda *args, **options: None)
    monkeypatch.setattr(Checkpoints, "_place", lambda *args: 1 / 0)
    (tmp_path / "file").touch()
    folder = tmp_path / place / "checkpoints"

    def save(world):
        with pytest.raises(OSError, match="could not write .*step-00000001") as failed:
            Checkpoints(folder, world).save(1, {"a": torch.ones(4)})
        return str(failed.value)

    with ThreadPoolExecutor(2) as pool:
        first, other = pool.map(save, Room(2).worlds)
    assert words in first
    assert "see the first process" in other


def test_random_states_are_set_back():
    states.seed_random(3, World())
    before = states.random_tensors(World())
    drawn = random.random(), torch.rand(3)
    states.set_random(before, World())
    assert random.random() == drawn[0] and torch.equal(torch.rand(3), drawn[1])


def test_a_grown_run_keeps_its_own_random_states():
    held = {"random/0/torch": None}
    mine = {"random/1/torch": torch.zeros(1), "a": torch.zeros(1)}
    with pytest.warns(UserWarning, match="of fewer processes"):
        assert states.keep_random(mine, held).keys() == {"a"}


@pytest.mark.parametrize(
    ("held", "kept"),
    [
        ({}, {"random/0/torch", "random/0/python"}),  # `load` says that they are gone
        ({"random/0/torch"}, {"random/0/torch", "random/0/python"}),
        ({"random/1/torch"}, {"random/0/torch", "random/0/python"}),
    ],
)
def test_a_run_that_has_not_grown_wants_its_random_states(held, kept):
    mine = dict.fromkeys(["random/0/torch", "random/0/python", "random/0/cuda"])
    assert states.keep_random(mine, dict.fromkeys(held)).keys() == kept


def test_facts_survive_as_bytes():
    facts = [{"step": 3, "seconds": 0.1}, {}]
    assert states.as_facts(states.as_tensor(facts)) == facts
    with pytest.raises(ValueError, match="must fit 8 bytes"):
        states.as_tensor("0123456789", 8)
