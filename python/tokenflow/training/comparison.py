"""Variants of a recipe, each run with every seed: what comparisons share.

A run that is finished is kept, one that was interrupted goes on, so the whole may be
stopped and started. Each run is judged where it was made and leaves its scores beside
its recipe; what it was made with must stay the same.
"""

import copy
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from tokenflow._files import writing
from tokenflow.training import config

SCORES = "scores.json"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
Scores = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """A recipe that is changed.

    Args:
        recipe: The name of one that ships, or a file.
        changes: Its fields that differ.
    """

    recipe: str = "mini"
    changes: dict[str, Any] = field(default_factory=dict)

    def read(self, kind: type[T], where: str = "") -> T:
        """Return the recipe; `where` stands before the names in errors.

        Raises:
            FileNotFoundError: There is no such recipe.
            ValueError: A field is unknown, or has a wrong value.
        """
        values = dataclasses.asdict(config.load(kind, self.recipe))  # type: ignore[call-overload]
        return config.build(kind, merge(values, self.changes), where)


@dataclass(frozen=True)
class Job:
    """One run of one variant, ready to be sent to another process."""

    variant: str
    about: str
    seed: int
    folder: Path
    recipe: Any
    judged: Any  # by what, a dataclass


Work = Callable[[Any, str, int | None], Scores]  # job, device, threads


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return nested values with some of them changed."""
    merged = copy.deepcopy(values)
    for name, value in changes.items():
        old = merged.get(name)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[name] = merge(old, value) if both else copy.deepcopy(value)
    return merged


def check(variants: Iterable[str], only: Sequence[str], jobs: int) -> None:
    """Refuse what a comparison cannot be started with.

    Raises:
        ValueError: There is no such variant, `jobs` is below 1, or torchrun started it.
    """
    for name in only:
        if name not in variants:
            raise ValueError(
                f"train: only must name variants, {list(variants)}, got {name}"
            )
    if jobs < 1:
        raise ValueError(f"train: jobs must be at least 1, got {jobs}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "train: a comparison is started by one process; it takes jobs, not torchrun"
        )


def same_recipe(job: Job, moved: Sequence[str] = ()) -> None:
    """Refuse to go on with what was begun otherwise.

    Args:
        job: Whose folder may hold a run.
        moved: "section.field" of paths, which may have changed.

    Raises:
        ValueError: Another recipe is there.
    """
    if not (job.folder / config.RECIPE).is_file():
        return
    begun = dataclasses.asdict(config.of_run(type(job.recipe), job.folder))
    wanted = dataclasses.asdict(job.recipe)
    for name in moved:
        section, path = name.split(".")
        if begun[section][path] and wanted[section][path]:
            begun[section][path] = wanted[section][path]
    if begun != wanted:
        raise ValueError(
            f"train: {job.folder} was begun with another recipe; name a new folder"
        )


def same_files(note: Path, source: Path, what: str) -> str:
    """Return a model's digest, which must be the one that `note` has, if it is there.

    Raises:
        ValueError: It is another one.
    """
    found = digest(source)
    if not note.is_file():
        note.parent.mkdir(parents=True, exist_ok=True)
        with writing(note) as beside:
            beside.write_text(f"{found}\n", encoding="utf-8")
    before = note.read_text(encoding="utf-8").strip()
    if before != found:
        raise ValueError(
            f"train: the runs in {note.parent} must have one {what}, theirs is "
            f"{before}, {source} is {found}; name a new folder"
        )
    return found


def digest(source: Path) -> str:
    """Return 16 hex digits of SHA-256 over a model's files, or its one file."""
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    made = hashlib.sha256()
    for path in files:
        if path.is_file():
            made.update(path.name.encode() + path.read_bytes())
    return made.hexdigest()[:16]


def make(
    every: Sequence[Job],
    work: Work,
    *,
    only: Sequence[str] = (),
    jobs: int = 1,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> list[Scores]:
    """Make the runs that are not finished; return the scores of all that are.

    Args:
        every: All runs.
        work: Trains and judges one, a function of a module.
        only: Names of the variants to run; all when empty.
        jobs: Runs at a time, each with its share of the threads.
        device: "cpu", "cuda" or "cuda:1".
        say: Takes a line for people.

    Raises:
        ValueError: A finished run was judged otherwise.
    """
    done = {job.folder: _finished(job) for job in every}
    wanted = [
        job
        for job in every
        if done[job.folder] is None and (not only or job.variant in only)
    ]
    for job, scores in _work_all(wanted, work, jobs, device, say):
        done[job.folder] = scores
    return [scores for scores in done.values() if scores is not None]


def _finished(job: Job) -> Scores | None:
    """Return the scores of a run that is done."""
    path = job.folder / SCORES
    if not path.is_file():
        return None
    scores: Scores = json.loads(path.read_text(encoding="utf-8"))
    judged = dataclasses.asdict(job.judged)
    if scores["judged"] != judged:
        raise ValueError(
            f"train: {path} must be of judged = {judged}, got {scores['judged']}; "
            "remove it to judge again, or name a new folder"
        )
    return scores


def _work_all(
    wanted: list[Job], work: Work, jobs: int, device: str, say: Callable[[str], None]
) -> Iterator[tuple[Job, Scores]]:
    """Run what is wanted; yields each run when it is done."""
    if jobs == 1:
        for job in wanted:
            say(f"{job.variant}, seed {job.seed}")
            yield job, work(job, device, None)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    # a fresh process for each run: a forked one could not use a device
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, start, max_tasks_per_child=1) as pool:
        waiting = {
            pool.submit(_work_apart, work, job, device, threads): job for job in wanted
        }
        for ready in as_completed(waiting):
            job = waiting[ready]
            scores = ready.result()
            say(f"{job.variant}, seed {job.seed}: done")
            yield job, scores


def _work_apart(work: Work, job: Job, device: str, threads: int) -> Scores:
    """Do one run in this process; it is asked to stop when the one before it is gone.

    Else a comparison that was killed and started again would write to folders that
    its orphans still write to.
    """

    def follow(parent: Any) -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    parent = multiprocessing.parent_process()
    threading.Thread(target=follow, args=(parent,), daemon=True).start()
    return work(job, device, threads)


def train_one(
    job: Job, train: Callable[..., dict[str, Any]], device: str, threads: int | None
) -> Scores:
    """Train one variant, or go on with it; return what its scores begin with.

    Args:
        job: What to run.
        train: Such as `train_tokenizer`.
        device: Where.
        threads: Of this process, which is one of several; None to leave them.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    bar = None if threads is None else False
    facts = train(job.recipe, job.folder, resume=True, device=device, bar=bar)
    return {
        "variant": job.variant,
        "about": job.about,
        "seed": job.seed,
        "steps": facts["steps"],
        "samples": facts["samples"],
        "minutes": facts["minutes"],
        "judged": dataclasses.asdict(job.judged),
    }


def write_json(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Write scores or a result, whole or not at all, and return them."""
    with writing(path) as beside:
        beside.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return values


def write_docs(result: dict[str, Any], table: str, page: Path) -> None:
    """Put a table between the two marks of a page.

    Raises:
        FileNotFoundError: There is no such page.
        ValueError: It has no marks, or a variant lacks a run.
    """
    recipe = result["recipe"]
    wanted = {(name, seed) for name in recipe["variants"] for seed in recipe["seeds"]}
    missing = wanted - {(run["variant"], run["seed"]) for run in result["runs"]}
    if missing:
        names = ", ".join(f"{name}-{seed}" for name, seed in sorted(missing))
        raise ValueError(f"train: a page needs every run, these are missing: {names}")
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"train: {page} must hold the lines {BEGIN} and {END}")
    with writing(page) as beside:
        beside.write_text(f"{before}{BEGIN}\n{table}{END}{after}", encoding="utf-8")


def effort(runs: Sequence[Scores], what: str) -> str:
    """Return in words how many runs there are and how long they were.

    Raises:
        ValueError: No run is finished.
    """
    if not runs:
        raise ValueError("train: a table needs a finished run, there is none")
    seeds, steps, samples = (
        ", ".join(map(str, sorted({run[name] for run in runs})))
        for name in ("seed", "steps", "samples")
    )
    minutes = sum(run["minutes"] for run in runs)
    return (
        f"{len(runs)} runs (seeds {seeds}) of {steps} steps and {samples} {what} "
        f"each, {minutes:.0f} minutes in all."
    )
