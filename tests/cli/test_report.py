"""`tokenflow report`: a run on one page."""

import json

import pytest


@pytest.fixture
def trained(tmp_path):
    """A run of which one line is written."""
    folder = tmp_path / "mine"
    folder.mkdir()
    step = {"event": "step", "step": 1, "seconds": 1.0, "loss": 2.0}
    (folder / "log.jsonl").write_text(json.dumps(step) + "\n")
    return folder


def test_the_page_is_beside_the_run_or_where_it_is_wanted(run, trained, tmp_path):
    code, out, _ = run("report", trained)
    assert code == 0 and out.strip() == str(trained / "report.html")
    code, out, _ = run("report", trained, "-o", tmp_path / "other" / "page.html")
    assert code == 0 and out.strip() == str(tmp_path / "other" / "page.html")
    assert "<title>training: mine</title>" in (trained / "report.html").read_text()


def test_no_run_is_a_usage_error(run, tmp_path):
    code, out, err = run("report", tmp_path / "none")
    assert code == 2 and not out
    assert "is not there" in err
