"""Asked to stop, a run ends its step, saves, and goes on later as if never stopped."""

import os
import signal
import threading

import pytest
import torch
from toy_task import Toy, train

from tokenflow.training import stop
from tokenflow.training.log import read
from tokenflow.training.run import RunConfig
from tokenflow.training.stop import Ears, Stopped

CONFIG = RunConfig(batch=8, steps=6, save_every=0, log_every=4, tensorboard=False)


class Told(Toy):
    """Is sent a signal in the middle of step 2."""

    def __init__(self, config, number):
        super().__init__(config)
        self.number = number

    def before_step(self, batch, optimizers, moment):
        super().before_step(batch, optimizers, moment)
        if moment.step == 2 and self.number:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str
)
def test_a_signal_ends_the_step_and_saves(tmp_path, number, status, capfd):
    handlers = [signal.getsignal(n) for n in stop.SIGNALS]
    with pytest.raises(Stopped) as stopped:
        train(Told(CONFIG, number), CONFIG, tmp_path / "told")
    assert stopped.value.status == status and stopped.value.step == 3
    assert "then saving" in capfd.readouterr().err
    assert [signal.getsignal(n) for n in stop.SIGNALS] == handlers
    assert [e["event"] for e in read(tmp_path / "told")] == ["start", "step", "stop"]
    again, whole = Toy(CONFIG), Toy(CONFIG)
    train(again, CONFIG, tmp_path / "told", resume=True)
    train(whole, CONFIG, tmp_path / "whole")
    for one, other in zip(
        again.model.parameters(), whole.model.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_signal_that_is_passed_on_twice_counts_once(capfd):
    with Ears() as ears:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert ears.heard == signal.SIGTERM
    assert capfd.readouterr().err.count("then saving") == 1


def test_who_insists_is_obeyed_at_once(monkeypatch):
    monkeypatch.setattr(stop, "TOGETHER", 0.0)
    # whoever starts the tests in the background has it ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as stopped, Ears(silent=True):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not isinstance(stopped.value, Stopped)


def test_a_run_in_a_thread_hears_nothing_and_works():
    found = []

    def listen():
        with Ears() as ears:
            found.append(ears.heard)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [0]


def test_the_last_step_is_the_end_though_a_signal_came(tmp_path):
    config = RunConfig(batch=8, steps=3, tensorboard=False)
    assert train(Told(config, signal.SIGTERM), config, tmp_path)["steps"] == 3
