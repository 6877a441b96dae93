"""What each part of the design brings: tokenizers that differ in one thing, compared.

A recipe names variants of one tokenizer. A teacher is trained once, every variant with
every seed, and all are judged by the same held-out scenes. A run that is finished is
kept, one that was interrupted goes on, so the whole may be stopped and started.
Source: TokenFlow, arXiv:2412.03069, table 5 and the cluster study of section 4.
"""

import copy
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from tokenflow._files import writing
from tokenflow.data.scenes import Scenes
from tokenflow.evaluation import pictures
from tokenflow.evaluation.probe import probe_tokenizer
from tokenflow.evaluation.reconstruction import Judges, evaluate_reconstruction
from tokenflow.evaluation.teacher_features import TeacherFeatures
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.teachers import load_teacher
from tokenflow.training import config
from tokenflow.training.teacher import TeacherRecipe, train_teacher
from tokenflow.training.tokenizer import TokenizerRecipe, train_tokenizer

SCORES = "scores.json"
RESULT = "ablation.json"
TEACHER = "teacher.sha256"
Scores = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One tokenizer of the comparison.

    Args:
        about: What it is, in a line.
        changes: Fields of the tokenizer's recipe that differ.
        distilled: Whether it has the teacher.
    """

    about: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    distilled: bool = True


@dataclass(frozen=True)
class TeacherPlan:
    """How the teacher is trained.

    Args:
        recipe: Of `tokenflow train teacher`: the name of one that ships, or a file.
        changes: Its fields that differ.
    """

    recipe: str = "mini"
    changes: dict[str, Any] = field(default_factory=dict)

    def read(self) -> TeacherRecipe:
        """Return the recipe.

        Raises:
            FileNotFoundError: There is no such recipe.
            ValueError: A field is unknown, or has a wrong value.
        """
        values = dataclasses.asdict(config.load(TeacherRecipe, self.recipe))
        return config.build(TeacherRecipe, _merge(values, self.changes), "teacher.")


@dataclass(frozen=True)
class JudgedConfig:
    """By how many scenes tokenizers are judged.

    Args:
        pictures: Held-out ones that are redrawn.
        probe_train: Scenes whose cells the probes know.
        probe_test: Held-out scenes whose cells they are asked about.
    """

    pictures: int = 512
    probe_train: int = 512
    probe_test: int = 256

    def __post_init__(self) -> None:  # noqa: D105
        for name, least in (("pictures", 2), ("probe_train", 1), ("probe_test", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"train: judged.{name} must be at least {least}, "
                    f"got {getattr(self, name)}"
                )


@dataclass(frozen=True)
class AblationRecipe:
    """All that defines a comparison.

    Args:
        tokenizer: A `TokenizerRecipe` as YAML holds it: what the variants share.
        variants: By name, a `Variant` as YAML holds it.
        teacher: How the teacher is trained.
        seeds: Of each variant's runs.
        judged: By what they are judged.

    Raises:
        FileNotFoundError: There is no such recipe of a teacher.
        ValueError: A variant is no recipe of a tokenizer, or the teacher's is none.
    """

    task: ClassVar[str] = "ablation"

    tokenizer: dict[str, Any]
    variants: dict[str, Any]
    teacher: TeacherPlan = field(default_factory=TeacherPlan)
    seeds: tuple[int, ...] = (0, 1)
    judged: JudgedConfig = field(default_factory=JudgedConfig)

    def __post_init__(self) -> None:  # noqa: D105
        if not self.variants or not self.seeds:
            raise ValueError("train: variants and seeds must not be empty")
        self.teacher.read()
        for name in self.variants:
            self.run(name, 0, "teacher")

    def variant(self, name: str) -> Variant:
        """Return what a name means."""
        return config.build(Variant, self.variants[name] or {}, f"variants.{name}.")

    def run(self, name: str, seed: int, teacher: str) -> TokenizerRecipe:
        """Return the recipe of one run.

        Args:
            name: Of the variant.
            seed: Of the run.
            teacher: Where the teacher is.
        """
        variant = self.variant(name)
        values = _merge(self.tokenizer, variant.changes)
        values = _merge(values, {"run": {"seed": seed}})
        if variant.distilled:
            values = _merge(values, {"teacher": {"source": teacher}})
        try:
            return config.build(TokenizerRecipe, values)
        except ValueError as error:
            raise ValueError(f"{error} (in variant {name})") from None


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return nested values with some of them changed."""
    merged = copy.deepcopy(values)
    for name, value in changes.items():
        old = merged.get(name)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[name] = _merge(old, value) if both else copy.deepcopy(value)
    return merged


@dataclass(frozen=True)
class Job:
    """One run of one variant, ready to be sent to another process."""

    variant: str
    about: str
    seed: int
    folder: Path
    recipe: TokenizerRecipe
    teacher: Path
    judged: JudgedConfig


def train_ablation(
    recipe: AblationRecipe,
    folder: Path,
    *,
    teacher: Path | None = None,
    only: Sequence[str] = (),
    jobs: int = 1,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train and judge every variant with every seed, as far as that is not done yet.

    Args:
        recipe: All that defines the comparison.
        folder: OUT: OUT/teacher, OUT/VARIANT-SEED, OUT/ablation.json.
        teacher: A trained teacher; one is trained when None.
        only: Names of the variants to run; all when empty.
        jobs: Runs at a time, each with its share of the threads.
        device: "cpu", "cuda" or "cuda:1".
        say: Takes a line for people.

    Returns:
        What ablation.json holds: the recipe, the teacher's digest, and the scores of
        every run that is finished, those of earlier calls included.

    Raises:
        ValueError: There is no such variant, or a run in the folder was begun with
            another recipe or another teacher, or judged by other scenes.
    """
    for name in only:
        if name not in recipe.variants:
            raise ValueError(
                f"train: only must name variants, {list(recipe.variants)}, got {name}"
            )
    if jobs < 1:
        raise ValueError(f"train: jobs must be at least 1, got {jobs}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "train: an ablation is started by one process; it takes jobs, not torchrun"
        )
    source = teacher or folder / "teacher" / "model"
    every = list(_plan(recipe, folder, source))
    for job in every:
        _check_recipe(job)
    if teacher is None and not source.exists():
        say("teacher")
        made = folder / "teacher"
        train_teacher(recipe.teacher.read(), made, resume=True, device=device)
    digest = _same_teacher(folder, source)
    finished = {job.folder: _finished(job) for job in every}
    wanted = [
        job
        for job in every
        if finished[job.folder] is None and (not only or job.variant in only)
    ]
    for job, scores in _run_all(wanted, jobs, device, say):
        finished[job.folder] = scores
    result = {
        "recipe": dataclasses.asdict(recipe),
        "teacher": digest,
        "runs": [s for s in finished.values() if s is not None],
    }
    with writing(folder / RESULT) as beside:
        beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _plan(recipe: AblationRecipe, folder: Path, teacher: Path) -> Iterator[Job]:
    """Yield all runs, every variant with the first seed before the second seed."""
    for seed in recipe.seeds:
        for name in recipe.variants:
            yield Job(
                name,
                recipe.variant(name).about,
                seed,
                folder / f"{name}-{seed}",
                recipe.run(name, seed, str(teacher)),
                teacher,
                recipe.judged,
            )


def _check_recipe(job: Job) -> None:
    """Refuse to go on with what was begun otherwise; a folder may have moved."""
    if not (job.folder / config.RECIPE).is_file():
        return
    begun = config.of_run(TokenizerRecipe, job.folder)
    if begun.teacher.source and job.recipe.teacher.source:
        choice = dataclasses.replace(begun.teacher, source=job.recipe.teacher.source)
        begun = dataclasses.replace(begun, teacher=choice)
    if begun != job.recipe:
        raise ValueError(
            f"train: {job.folder} was begun with another recipe; name a new folder"
        )


def _same_teacher(folder: Path, teacher: Path) -> str:
    """Return the teacher's digest, the one that the folder's other runs had."""
    digest, path = _digest(teacher), folder / TEACHER
    if not path.is_file():
        with writing(path) as beside:
            beside.write_text(f"{digest}\n", encoding="utf-8")
    before = path.read_text(encoding="utf-8").strip()
    if before != digest:
        raise ValueError(
            f"train: the runs in {folder} must have one teacher, theirs is {before}, "
            f"{teacher} is {digest}; name a new folder"
        )
    return digest


def _finished(job: Job) -> Scores | None:
    """Return the scores of a run that is done."""
    path = job.folder / SCORES
    if not path.is_file():
        return None
    scores: Scores = json.loads(path.read_text(encoding="utf-8"))
    if scores["judged"] != dataclasses.asdict(job.judged):
        raise ValueError(
            f"train: {path} must be of judged = {dataclasses.asdict(job.judged)}, got "
            f"{scores['judged']}; remove it to judge again, or name a new folder"
        )
    return scores


def _run_all(
    wanted: list[Job],
    jobs: int,
    device: str,
    say: Callable[[str], None],
) -> Iterator[tuple[Job, Scores]]:
    """Run what is wanted; yields each run when it is done."""
    if jobs == 1:
        for job in wanted:
            say(f"{job.variant}, seed {job.seed}")
            yield job, run_job(job, device)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    # a fresh process for each run: a forked one could not use a device
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, start, max_tasks_per_child=1) as pool:
        waiting = {pool.submit(run_job, job, device, threads): job for job in wanted}
        for done in as_completed(waiting):
            job = waiting[done]
            scores = done.result()
            say(f"{job.variant}, seed {job.seed}: done")
            yield job, scores


def run_job(job: Job, device: str = "cpu", threads: int | None = None) -> Scores:
    """Train one variant, or go on with it, and judge it.

    Args:
        job: What to run.
        device: Where.
        threads: Of this process, which is one of several; None to leave them.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    bar = None if threads is None else False
    facts = train_tokenizer(job.recipe, job.folder, resume=True, device=device, bar=bar)
    model = TokenFlowTokenizer.from_pretrained(str(job.folder / "model"))
    scores = {
        "variant": job.variant,
        "about": job.about,
        "seed": job.seed,
        "steps": facts["steps"],
        "samples": facts["samples"],
        "minutes": facts["minutes"],
        "judged": dataclasses.asdict(job.judged),
        **judge(model.to(device).eval(), job.teacher, job.judged),
    }
    with writing(job.folder / SCORES) as beside:
        beside.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return scores


def judge(model: TokenFlowTokenizer, teacher: Path, by: JudgedConfig) -> Scores:
    """Return a tokenizer's scores on held-out scenes.

    Args:
        model: In evaluation mode.
        teacher: In whose space redrawn pictures are compared with their originals.
        by: How many scenes.

    Returns:
        "tokens", "bits" (tokens · log2 K), "parameters"; "psnr", "ssim",
        "frechet_teacher", "usage", "perplexity" (see docs/evaluation.md); "whole",
        and "semantic" where the model has such a half: what the probes of object
        names say of the cells with an object (see `probe`).
    """
    size = model.config.image_size
    seer = TeacherFeatures(load_teacher(teacher).to(model.device), teacher.name)
    shown = pictures.load("scenes", size=size, count=by.pictures)

    def fail(name: str, error: Exception) -> None:
        raise error

    parts = pictures.batches(shown, 64, fail)
    found = evaluate_reconstruction(model, parts, judges=Judges(teacher=seer))
    seed = pictures.SEED
    known = Scenes("train", size=size, seed=seed, length=by.probe_train)
    asked = Scenes("heldout", size=size, seed=seed, length=by.probe_test)
    scores = {
        "tokens": found["tokens"],
        "bits": found["tokens"] * math.log2(found["codebook_size"]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "psnr": found["model"]["psnr"],
        "ssim": found["model"]["ssim"],
        "frechet_teacher": found["frechet_teacher"]["distance"],
        "usage": found["usage"],
        "perplexity": found["perplexity"],
        "whole": probe_tokenizer(model, known, asked, "last", background=False),
    }
    if model.config.semantic_dim:
        scores["semantic"] = probe_tokenizer(
            model, known, asked, "semantic", background=False
        )
    return scores


def _digest(teacher: Path) -> str:
    """Return 16 hex digits of SHA-256 over a teacher's files, or its one file."""
    files = sorted(teacher.rglob("*")) if teacher.is_dir() else [teacher]
    digest = hashlib.sha256()
    for path in files:
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
