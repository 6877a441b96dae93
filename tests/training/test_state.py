"""Checkpoints: whole or not at all, and nothing missing goes unseen."""

import random
import shutil

import pytest
import torch

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


def test_facts_survive_as_bytes():
    facts = [{"step": 3, "seconds": 0.1}, {}]
    assert states.as_facts(states.as_tensor(facts)) == facts
    with pytest.raises(ValueError, match="must fit 8 bytes"):
        states.as_tensor("0123456789", 8)
