"""Cases into results: processes, rounds, clean samples, ratios.

Everybody's worker is started, judged and warmed; then they take turns, A B C A B C, one
sample each, until all have enough clean samples or the rounds are over. Who has too few
then has no time: dirty samples are never used instead.
"""

import contextlib
import json
import math
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenflow._memory import available
from tokenflow.benchmark.load import Sample, measurable
from tokenflow.benchmark.method import Method, Values, load

AGAIN = "ours, again"  # the same once more in another process: what chance does
_SPARE = 1 << 30  # bytes to leave free


@dataclass(frozen=True)
class Protocol:
    """How long and how often.

    Attributes:
        seconds: Least length of a sample.
        wanted: Clean samples after which one has enough.
        least: Clean samples below which there is no result.
        rounds: Turns at most.
        limit: Seconds of turns per case, after which only what is missing is sampled,
            and after twice which nothing is.
        patience: Seconds until a silent worker is given up.
    """

    seconds: float = 0.3
    wanted: int = 5
    least: int = 3
    rounds: int = 12
    limit: float = 45.0
    patience: float = 400.0


QUICK = Protocol(seconds=0.1, wanted=2, least=2, rounds=6, limit=5.0)


@dataclass(frozen=True)
class Setting:
    """Where everybody runs."""

    device: str = "cpu"
    threads: int = 1
    isa: str | None = None


class Lost(Exception):
    """A worker ended, or never answered."""


class Worker:
    """The driver's end of one process.

    Args:
        command: What to run; it answers in lines of JSON on stdout.
        threads: For every library's own thread pool.
        isa: Instruction set of our kernels; the best where None.
    """

    def __init__(
        self, command: Sequence[str], threads: int = 1, isa: str | None = None
    ) -> None:
        pools = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
        settings = {f"{pool}_NUM_THREADS": str(threads) for pool in pools}
        if isa is not None:
            settings["TOKENFLOW_ISA"] = isa
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by close)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, **settings},
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            self.lines.put(line)
        self.lines.put("")

    def answer(self, patience: float) -> dict[str, Any]:
        """Return the next line.

        Raises:
            Lost: The process ended instead, or said nothing for that long.
        """
        try:
            line = self.lines.get(timeout=patience)
        except queue.Empty:
            self.close()
            raise Lost(f"no answer in {patience:.0f} s") from None
        if not line:
            raise Lost(self._why())
        return json.loads(line)

    def sample(self, seconds: float, patience: float) -> Sample:
        """Have it take one sample."""
        try:
            self.process.stdin.write(json.dumps({"sample": seconds}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Lost(self._why()) from None
        return Sample(**self.answer(patience))

    def _why(self) -> str:
        code = self.process.wait()
        self.log.seek(0)
        said = [line.strip() for line in self.log if line.strip()]
        if code == -9:
            return "killed (out of memory?)"
        return said[-1][:200] if said else f"ended with status {code}"

    def close(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@dataclass
class Row:
    """What came of one method of one case."""

    name: str
    kind: str
    fills: str | None = None
    problem: str = ""  # why it was not run, or what it died of
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    least: int = 3

    @property
    def clean(self) -> list[float]:
        """Seconds of a call, of each clean sample."""
        return [s.seconds for s in self.samples if s.clean]

    @property
    def median(self) -> float | None:
        """Seconds of a call; None with too few clean samples."""
        if self.problem or len(self.clean) < self.least:
            return None
        return statistics.median(self.clean)

    @property
    def right(self) -> bool:
        """Whether its answer is one to this question."""
        return bool((self.facts.get("verdict") or {"right": True})["right"])

    def as_json(self) -> dict[str, Any]:
        """Return everything, times in milliseconds."""
        return {
            "name": self.name,
            "kind": self.kind,
            "problem": self.problem or None,
            "median_ms": _ms(self.median),
            "best_ms": _ms(min(self.clean, default=None)),
            "samples": len(self.samples),
            "clean_samples": len(self.clean),
            "clean_ms": [_ms(s) for s in self.clean],
            "first_ms": _ms(self.facts.get("first")),
            "extra_bytes": self.facts.get("extra"),
            "version": self.facts.get("version"),
            **{"verdict": self.facts.get("verdict")},
        }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


@dataclass
class Result:
    """One case of one op."""

    op: str
    values: Values
    label: str
    rows: list[Row]
    ceilings: dict[str, float]  # per second
    work: dict[str, float]
    exact: bool = True  # whether a mismatch of ours is a fault

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def of(self, *kinds: str) -> list[Row]:
        """Rows of these kinds that have a time and are right, fastest first."""
        timed = [r for r in self.rows if r.kind in kinds and r.median and r.right]
        return sorted(timed, key=lambda row: row.median or math.inf)

    def spread(self) -> float | None:
        """By how much ours differs from ours in another process."""
        pair = [r.median for r in self.rows if r.name in ("ours", AGAIN)]
        if len(pair) < 2 or None in pair:
            return None
        return max(pair) / min(pair) - 1  # type: ignore[type-var, operator]

    def shares(self, row: Row) -> dict[str, float]:
        """Work done per second, over what the machine can do at most."""
        if not row.median:
            return {}
        return {
            name: self.work[name] / row.median / self.ceilings[name]
            for name in self.work
            if self.ceilings.get(name)
        }

    def ratio(self, row: Row, other: Row | None) -> float | None:
        """How many times as long the other takes."""
        if other is None or not row.median or not other.median:
            return None
        return other.median / row.median

    def faults(self) -> list[str]:
        """What is wrong with ours: an error, or an answer that is not exact."""
        found = []
        for row in self.rows:
            verdict = row.facts.get("verdict") or {}
            if row.kind != "ours":
                continue
            if row.problem.startswith("failed"):
                found.append(f"{self.op} {self.label}, {row.name}: {row.problem}")
            elif not row.right or (self.exact and verdict.get("mismatches")):
                found.append(f"{self.op} {self.label}, {row.name}: {verdict}")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return everything, with the ratios of every row of ours."""
        peers, published = self.of("peer", "published"), self.of("published")
        ours = []
        for row in self.rows:
            if row.kind == "ours":
                ratios = {
                    "best_peer": peers[0].name if peers else None,
                    "best_peer_ratio": self.ratio(row, peers[0] if peers else None),
                    "published_ratio": self.ratio(
                        row, published[0] if published else None
                    ),
                    "shares": self.shares(row),
                }
                ours.append({"name": row.name, **ratios})
        return {
            "op": self.op,
            "case": self.label,
            "values": self.values,
            "ours": ours,
            "spread": self.spread(),
            "ceilings": self.ceilings,
            "work": self.work,
            "methods": [row.as_json() for row in self.rows],
        }


def run_case(
    op: str,
    values: Values,
    setting: Setting,
    protocol: Protocol,
    only: Sequence[str] = (),
    note: Callable[[str], None] = lambda text: None,
    known: dict[str, float] | None = None,
) -> Result:
    """Time every method of a case.

    Args:
        op: Name of the op.
        values: One of its cases.
        setting: Device, threads, instruction set.
        protocol: How long and how often.
        only: Methods whose name contains one of these; all where empty.
        note: Takes lines about the progress.
        known: Ceilings that an earlier case of this run has measured; none of copying,
            which depends on the case.
    """
    module, known = load(op), known or {}
    label = module.LABEL.format(**values)
    chosen = [
        m
        for m in module.method
        if not only or m.name == "ours" or any(part in m.name for part in only)
    ]
    rows = [_row(m, protocol) for m in chosen]
    if any(row.name == "ours" for row in rows):
        rows.append(_row(module.method["ours"], protocol, AGAIN))
    work = module.work(values)
    kinds = [k for k in ("fma", "int8", "copy") if work.get(k) and k not in known]
    measures = [Row(k, "ceiling", least=protocol.least) for k in kinds]
    order = {"op": op, "values": values, **vars(setting)}
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder:
        truth = str(Path(folder) / "truth.pt")
        note(f"{op} {label}: {len(rows)} methods")
        judge = _start({**order, "method": "truth", "truth": truth})
        try:
            judge.answer(protocol.patience)
        finally:
            judge.close()
        ready = [
            (row, module.method[_method(row)], {**order, "truth": truth})
            for row in rows
        ]
        size = {"bytes": work.get("copy", 0) / 2}
        for row in measures:
            other = {**order, "op": "ceilings", "values": size}
            ready.append((row, load("ceilings").method[row.name], other))
        try:
            _get_ready(ready, workers, protocol, note)
            _take_turns([*rows, *measures], workers, protocol, note)
        finally:
            for worker in workers.values():
                worker.close()
    ceilings = {**known, **_rates(measures)}
    exact = getattr(module, "EXACT", True)
    return Result(op, values, label, rows, ceilings, work, exact)


def _method(row: Row) -> str:
    return "ours" if row.name == AGAIN else row.name


def _row(method: Method, protocol: Protocol, name: str | None = None) -> Row:
    return Row(
        name or method.name,
        "again" if name else method.kind,
        method.fills,
        least=protocol.least,
    )


def _start(order: dict[str, Any]) -> Worker:
    words = [sys.executable, "-m", "tokenflow.benchmark.worker", json.dumps(order)]
    return Worker(words, order["threads"], order["isa"])


def _get_ready(
    ready: Iterable[tuple[Row, Method, dict[str, Any]]],
    workers: dict[str, Worker],
    protocol: Protocol,
    note: Callable[[str], None],
) -> None:
    """Start everybody: two at a time, those that need much memory alone."""

    def start(entry: tuple[Row, Method, dict[str, Any]]) -> None:
        row, method, order = entry
        row.problem = obstacle(method, order["values"], order["device"])
        if row.problem:
            return
        worker = _start({**order, "method": method.name})
        try:
            row.facts = worker.answer(protocol.patience)
            workers[row.name] = worker
        except Lost as lost:
            row.problem = f"failed: {lost}"
            note(f"{row.name}: {row.problem}")
            worker.close()

    entries = list(ready)
    heavy = [e for e in entries if e[1].takes(e[2]["values"]) > _SPARE]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(start, (e for e in entries if e not in heavy)))
    for entry in heavy:
        start(entry)


def obstacle(method: Method, values: Values, device: str = "cpu") -> str:
    """Why a method cannot be run on a case here; "" where it can."""
    if missing := method.missing():
        return f"not installed: {missing}"
    if method.device and not device.startswith(method.device):
        return f"runs on {method.device} alone"
    if unfit := method.fits(values):
        return unfit
    takes, free = method.takes(values), available()
    if free is not None and takes > max(0, free - _SPARE) and device == "cpu":
        return f"needs {takes / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
    return ""


def _take_turns(
    rows: list[Row],
    workers: dict[str, Worker],
    protocol: Protocol,
    note: Callable[[str], None],
) -> None:
    start = time.perf_counter()
    for turn in range(protocol.rounds):
        spent = time.perf_counter() - start
        late = spent > protocol.limit
        wanted = protocol.least if late or turn >= protocol.wanted else protocol.wanted
        waiting = [r for r in rows if r.name in workers and len(r.clean) < wanted]
        if not waiting or spent > 2 * protocol.limit:
            return
        note(f"  turn {turn + 1}: {len(waiting)} lack clean samples")
        # Everybody again, not only who lacks samples, unless time is short.
        for row in rows if turn < protocol.wanted and not late else waiting:
            if row.name not in workers:
                continue
            try:
                sample = workers[row.name].sample(protocol.seconds, protocol.patience)
                row.samples.append(sample)
            except Lost as lost:
                row.problem = f"failed: {lost}"
                note(f"{row.name}: {row.problem}")
                workers.pop(row.name).close()


def _rates(measures: list[Row]) -> dict[str, float]:
    """Ceilings per second."""
    return {r.name: r.facts["amount"] / r.median for r in measures if r.median}


def run_op(
    op: str,
    setting: Setting,
    protocol: Protocol,
    *,
    cases: Sequence[str] = (),
    families: Sequence[str] = (),
    only: Sequence[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Time every case of an op; see `run_case`.

    Args:
        cases: Cases whose label contains one of these; all where empty.
        families: Data families, for ops that have them; random where empty.
    """
    module = load(op)
    wanted = [
        v
        for v in expand(module, families)
        if not cases or any(part in module.LABEL.format(**v) for part in cases)
    ]
    results: list[Result] = []
    known: dict[str, float] = {}
    for values in wanted:
        done = run_case(op, values, setting, protocol, only, note, known)
        known = {k: rate for k, rate in done.ceilings.items() if k != "copy"}
        results.append(done)
    return results


def expand(module: Any, families: Sequence[str]) -> list[Values]:
    """The cases of an op, once for each data family."""
    if not families or not getattr(module, "FAMILIES", False):
        return list(module.CASES)
    found = [
        module.in_family(values, family)
        for values in module.CASES
        for family in families
    ]
    return [v for i, v in enumerate(found) if v not in found[:i]]


def noise_note() -> str:
    """What can be said of other load on this machine."""
    if measurable():
        return "samples with other load above 10 % of their time are dropped"
    return "other load cannot be seen on this system: no sample is dropped"
