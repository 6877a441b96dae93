"""The harness: what is clean, who is counted, what a failure looks like."""

import sys

import pytest

from tokenflow.benchmark import load
from tokenflow.benchmark.harness import (
    AGAIN,
    Lost,
    Protocol,
    Result,
    Row,
    Worker,
    _take_turns,
)
from tokenflow.benchmark.load import Reading, Sample, between, busy_seconds
from tokenflow.benchmark.table import as_text, number


def clean(seconds, count=3):
    return [Sample(wall=seconds * 10, calls=10, other=0.0)] * count


def row(name, kind, seconds, **facts):
    return Row(name, kind, facts=facts, samples=clean(seconds))


def test_busy_is_all_but_idle_and_waiting_and_counts_what_was_stolen():
    stat = "cpu  100 20 30 4000 500 6 7 8 99 0\ncpu0 1 1 1"
    assert busy_seconds(stat, ticks=100) == pytest.approx(1.71)


@pytest.mark.parametrize(
    "busy, own, is_clean",
    [(0.60, 0.60, True), (0.62, 0.60, True), (0.65, 0.60, False), (0.3, 0.31, True)],
)
def test_a_sample_is_clean_while_others_take_a_tenth(busy, own, is_clean):
    start, end = Reading(5.0, 70.0, 1.0), Reading(5.3, 70.0 + busy, 1.0 + own)
    sample = between(start, end, calls=3)
    assert sample.clean == is_clean
    assert sample.seconds == pytest.approx(0.1)


def test_the_machine_can_be_read():
    first, then = load.read(), load.read()
    assert then.wall >= first.wall and then.own >= first.own
    assert then.busy >= first.busy


def test_dirty_samples_are_never_used():
    dirty = Sample(wall=0.3, calls=1, other=0.2)
    ours = Row("ours", "ours", samples=[*clean(1.0, 2), dirty, dirty])
    assert ours.median is None
    ours.samples.append(Sample(wall=3.0, calls=1, other=0.0))
    assert ours.median == 1.0


def result(*rows, **facts):
    given = {"ceilings": {"fma": 100.0}, "work": {"fma": 50.0}} | facts
    return Result("quantize", {"n": 1}, "N=1", list(rows), **given)


def test_ratios_shares_and_spread_are_of_medians():
    verdict = {"mismatches": 0, "judged": 9, "right": True}
    bad = {"mismatches": 9, "judged": 9, "right": False}
    ours = row("ours", "ours", 1.0, verdict=verdict, extra=3 << 20)
    found = result(
        ours,
        row(AGAIN, "again", 1.1),
        row("product", "peer", 4.0),
        row("published", "published", 12.0),
        row("nonsense", "peer", 0.1, verdict=bad),
    )
    said = found.as_json()
    assert said["ours"][0] == {
        "name": "ours",
        "best_peer": "product",
        "best_peer_ratio": 4.0,
        "published_ratio": 12.0,
        "shares": {"fma": 0.5},
    }
    assert said["spread"] == pytest.approx(0.1)
    text = as_text("quantize", [found], {"cpu": "abacus", "gpu": None}, "A story.")
    assert "cpu abacus" in text and "gpu" not in text
    assert (
        "| N=1 | ours | 1000 | – | product, 4000 | 4.00 | published, 12000 | 12.00 "
        "| fma 50% | 0 of 9 wrong | 3.0 MiB | 3 of 3 |" in text
    )
    assert "| nonsense | 100 (another answer) |" in text
    assert "A against A 10.0%" in text


def test_a_row_without_enough_clean_samples_says_so():
    ours = Row("ours", "ours", samples=clean(1.0, 1))
    said = result(ours, row("product", "peer", 4.0))
    assert "too few clean samples (1 of 1)" in as_text("quantize", [said], {})
    assert said.as_json()["ours"][0]["best_peer_ratio"] is None
    assert said.shares(ours) == {}


def test_out_stands_beside_what_allocates():
    rows = [row("ours", "ours", 1.0), row("ours, out=", "ours", 0.5)]
    rows[1].fills = "ours"
    text = as_text("norm", [result(*rows, row("eager", "published", 2.0))], {})
    assert "| N=1 | ours | 1000 | 500 | eager, 2000 | 2.00 / 4.00 |" in text


def test_an_inexact_answer_of_ours_is_a_fault_and_a_peer_s_is_not():
    wrong = {"mismatches": 1, "judged": 9, "right": True}
    found = result(
        row("ours", "ours", 1.0, verdict=wrong),
        row("product", "peer", 1.0, verdict=wrong),
        Row("ours, out=", "ours", problem="failed: killed"),
        Row("faiss", "peer", problem="not installed: faiss"),
    )
    faults = found.faults()
    assert [line.split(", ")[1].split(":")[0] for line in faults] == ["ours", "ours"]
    assert "faiss: not installed: faiss" in as_text("quantize", [found], {})


@pytest.mark.parametrize(
    "value, text",
    [(1234.5, "1234"), (12.345, "12.3"), (1.0, "1"), (0.01234, "0.0123")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def worker(code):
    return Worker([sys.executable, "-c", code])


def test_a_worker_that_dies_says_its_last_words():
    process = worker("raise ValueError('no such codes')")
    with pytest.raises(Lost, match="ValueError: no such codes"):
        process.answer(patience=30)
    process.close()


def test_a_killed_worker_is_told_as_such():
    process = worker("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(Lost, match="killed"):
        process.answer(patience=30)
    process.close()


def test_a_silent_worker_is_given_up():
    process = worker("import time; time.sleep(60)")
    with pytest.raises(Lost, match="no answer in 0 s"):
        process.answer(patience=0.2)
    assert process.process.poll() is not None


def test_a_worker_that_dies_while_timed_is_a_row_and_the_others_go_on():
    code = """
import sys
for count, line in enumerate(sys.stdin):
    if count == {last}:
        sys.exit('no more')
    print('{{"wall": 0.3, "calls": 3, "other": 0.0}}', flush=True)
"""
    rows = [Row("steady", "peer"), Row("frail", "peer")]
    workers = {
        "steady": worker(code.format(last=99)),
        "frail": worker(code.format(last=1)),
    }
    started = [*workers.values()]
    said = []
    _take_turns(rows, workers, Protocol(), said.append)
    for process in started:
        process.close()
    assert rows[0].median == pytest.approx(0.1) and len(rows[0].samples) == 5
    assert rows[1].median is None and rows[1].problem == "failed: no more"
    assert "frail: failed: no more" in said
