"""What each part of the design brings: tokenizers that differ in one thing, compared.

A recipe names variants of one tokenizer. A teacher is trained once, every variant with
every seed, and all are judged by the same held-out scenes. A run that is finished is
kept, one that was interrupted goes on, so the whole may be stopped and started.
Source: TokenFlow, arXiv:2412.03069, table 5 and the cluster study of section 4.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tokenflow.data.scenes import Scenes
from tokenflow.evaluation import pictures
from tokenflow.evaluation.probe import probe_tokenizer
from tokenflow.evaluation.reconstruction import Judges, evaluate_reconstruction
from tokenflow.evaluation.teacher_features import TeacherFeatures
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.teachers import load_teacher
from tokenflow.training import comparison, config
from tokenflow.training.comparison import Job, Plan, Scores, merge
from tokenflow.training.teacher import TeacherRecipe, train_teacher
from tokenflow.training.tokenizer import TokenizerRecipe, train_tokenizer

RESULT = "ablation.json"
TEACHER = "teacher.sha256"


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
    teacher: Plan = field(default_factory=Plan)
    seeds: tuple[int, ...] = (0, 1)
    judged: JudgedConfig = field(default_factory=JudgedConfig)

    def __post_init__(self) -> None:  # noqa: D105
        if not self.variants or not self.seeds:
            raise ValueError("train: variants and seeds must not be empty")
        self.teacher.read(TeacherRecipe, "teacher.")
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
        values = merge(self.tokenizer, variant.changes)
        values = merge(values, {"run": {"seed": seed}})
        if variant.distilled:
            values = merge(values, {"teacher": {"source": teacher}})
        try:
            return config.build(TokenizerRecipe, values)
        except ValueError as error:
            raise ValueError(f"{error} (in variant {name})") from None


@dataclass(frozen=True)
class Tokenizer(Job):
    """One run of one variant, and the teacher that judges it."""

    teacher: Path


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
    comparison.check(recipe.variants, only, jobs)
    source = teacher or folder / "teacher" / "model"
    every = list(_plan(recipe, folder, source))
    for job in every:
        comparison.same_recipe(job, moved=["teacher.source"])
    if teacher is None and not source.exists():
        say("teacher")
        plan, made = recipe.teacher.read(TeacherRecipe), folder / "teacher"
        train_teacher(plan, made, resume=True, device=device)
    digest = comparison.same_files(folder / TEACHER, source, "teacher")
    runs = comparison.make(every, run_job, only=only, jobs=jobs, device=device, say=say)
    result = {"recipe": dataclasses.asdict(recipe), "teacher": digest, "runs": runs}
    return comparison.write_json(folder / RESULT, result)


def _plan(recipe: AblationRecipe, folder: Path, teacher: Path) -> Iterator[Tokenizer]:
    """Yield all runs, every variant with the first seed before the second seed."""
    for seed in recipe.seeds:
        for name in recipe.variants:
            yield Tokenizer(
                name,
                recipe.variant(name).about,
                seed,
                folder / f"{name}-{seed}",
                recipe.run(name, seed, str(teacher)),
                recipe.judged,
                teacher,
            )


def run_job(job: Tokenizer, device: str, threads: int | None) -> Scores:
    """Train one variant, or go on with it, and judge it; see `train_one`."""
    facts = comparison.train_one(job, train_tokenizer, device, threads)
    model = TokenFlowTokenizer.from_pretrained(str(job.folder / "model"))
    scores = judge(model.to(device).eval(), job.teacher, job.judged)
    return comparison.write_json(job.folder / comparison.SCORES, {**facts, **scores})


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
