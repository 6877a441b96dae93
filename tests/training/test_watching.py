"""Watching a run: TensorBoard holds its numbers, and the bar says the truth."""

import io

import pytest
from PIL import Image
from toy_task import Toy, train

from tokenflow.training.bar import Bar
from tokenflow.training.log import Log, read
from tokenflow.training.run import RunConfig


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def drawn(file):
    """The bar as it last was."""
    return file.getvalue().split("\r")[-1].split("\n")[0]


def test_speed_and_time_to_go_are_of_this_process(clock):
    file = io.StringIO()
    bar = Bar(0.5, file, clock)  # resumed half way
    clock.now += 10
    bar.move(0.6, 60, 80, loss=0.25)
    assert " 60.0% |" in drawn(file)
    assert drawn(file).rstrip().endswith("step 60, 8 img/s, 00:40 to go, loss 0.25")
    clock.now += 7200
    bar.move(0.7, 70, 160)
    assert "2:00:10" not in drawn(file) and "3:00:15 to go" in drawn(file)
    bar.close()


def test_speed_is_of_the_latest_minute(clock):
    file = io.StringIO()
    bar = Bar(0.0, file, clock)
    for i in range(1, 61):  # one a second
        clock.now += 1
        bar.move(i / 1000, i, i)
    for i in range(1, 61):  # then ten a second
        clock.now += 1
        bar.move((60 + i) / 1000, 60 + i, 60 + 10 * i)
    assert ", 10 img/s" in drawn(file)
    bar.close()


def test_a_bar_is_drawn_twice_a_second_at_most_and_at_the_end(clock):
    file = io.StringIO()
    bar = Bar(0.0, file, clock)
    start = file.getvalue().count("\r")
    for i in range(1, 1000):
        clock.now += 0.01
        bar.move(i / 1000, i, i)
    assert 15 <= file.getvalue().count("\r") - start <= 21
    bar.move(1.0, 1000, 1000)
    assert "100.0%" in drawn(file) and "step 1000" in drawn(file)
    bar.close()


def test_the_first_moments_claim_no_speed(clock):
    file = io.StringIO()
    bar = Bar(0.25, file, clock)
    bar.move(0.25, 5, 0)
    assert "img/s" not in drawn(file) and "to go" not in drawn(file)
    bar.close()


def test_a_run_that_is_watched_shows_a_bar_and_its_lines(tmp_path, capsys):
    config = RunConfig(
        batch=4, steps=5, log_every=2, evaluate_every=2, tensorboard=False
    )
    train(Toy(config), config, tmp_path, bar=True)
    shown = capsys.readouterr().err
    assert "100.0%" in shown and "step 5" in shown and "loss" in shown
    assert "\n   0.0 min, step 4: answer" in shown.replace("\r", "\n")


def test_tensorboard_holds_the_numbers_and_the_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path, tensorboard=True, bar=False)
    log.event("step", step=20, loss=0.5, **{"usage/8x8": 0.25})
    log.event("step", step=40, loss=0.125)
    log.event("heldout", step=40, psnr=21.5)
    picture = Image.new("RGB", (16, 4), (255, 128, 0))
    log.picture("heldout", picture, 40)
    log.close()
    held = EventAccumulator(str(tmp_path / "tensorboard"))
    held.Reload()
    losses = [(e.step, e.value) for e in held.Scalars("step/loss")]
    assert losses == [(20, 0.5), (40, 0.125)]
    assert [e.value for e in held.Scalars("step/usage/8x8")] == [0.25]
    assert [e.value for e in held.Scalars("heldout/psnr")] == [21.5]
    (shown,) = held.Images("heldout")
    found = Image.open(io.BytesIO(shown.encoded_image_string))
    assert (shown.step, found.size, found.getpixel((3, 3))) == (
        40,
        (16, 4),
        (255, 128, 0),
    )
    stored = Image.open(tmp_path / "pictures" / "heldout-00000040.png")
    assert stored.getpixel((3, 3)) == (255, 128, 0)
    assert [e["event"] for e in read(tmp_path)] == ["step", "step", "heldout"]
