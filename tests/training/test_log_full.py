"""The log on a full disk and after a kill: whole lines, and no run lost for them."""

import json

import pytest
from PIL import Image

from tokenflow.training import log as logs
from tokenflow.training.log import Log, append, read


def steps(run):
    return [e["step"] for e in read(run) if e["event"] == "step"]


def write(run, *lines):
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def step(number, **facts):
    return {"event": "step", "step": number, **facts}


def test_half_a_line_does_not_spoil_the_next(tmp_path):
    write(tmp_path, step(1))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "st')
    Log(tmp_path).event("step", step=2)
    assert steps(tmp_path) == [1, 2]


def test_lines_wait_while_the_disk_is_full(tmp_path, monkeypatch, capsys):
    log = Log(tmp_path)
    log.event("step", step=1)

    def full(path, lines):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs, "append", full)
    log.event("step", step=2)
    log.event("step", step=3)
    assert capsys.readouterr().err.count("its lines wait") == 1
    assert steps(tmp_path) == [1]
    monkeypatch.setattr(logs, "append", append)
    log.event("step", step=4)
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_a_device_that_takes_nothing_stops_no_run(tmp_path, capsys):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = Log(tmp_path)
    log.event("step", step=1)
    log.close()
    assert "No space left on device" in capsys.readouterr().err


def test_what_was_half_written_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    append(path, b"one\n")
    opened = type(path).open

    class Half:
        def __init__(self, file):
            self.file, self.times = file, 0

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, lines):
            self.times += 1
            if self.times > 1:
                raise OSError(28, "No space left on device")
            return self.file.write(lines[:2])

    monkeypatch.setattr(type(path), "open", lambda *a, **k: Half(opened(*a, **k)))
    with pytest.raises(OSError, match="No space left"):
        append(path, b"two\n")
    monkeypatch.undo()
    assert path.read_bytes() == b"one\n"


def test_a_picture_that_cannot_be_written_is_given_up(tmp_path, capsys):
    log = Log(tmp_path)
    (tmp_path / "pictures").write_text("in the way of the folder")
    log.picture("heldout", Image.new("RGB", (2, 2)), 1)
    assert "heldout-00000001.png cannot be written" in capsys.readouterr().err
