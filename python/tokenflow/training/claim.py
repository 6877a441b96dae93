"""Do discrete tokens tell as much as continuous features? Four inputs, compared.

The same new language model learns from the same conversations in as many steps, and
reads of each picture: a teacher's continuous features, as LLaVA-1.5 does; TokenFlow's
tokens; tokens of pixels alone; tokens of meaning alone; or nothing, to see what the
questions alone tell. All are then asked the same questions about held-out scenes.
Source: TokenFlow, arXiv:2412.03069, its first claim, in our small world.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from tokenflow import checkpoint
from tokenflow.data.dialogues import SceneQuestions
from tokenflow.evaluation.questions import SEED, ask, in_batches, plain, scores
from tokenflow.training import claim_table, comparison, config
from tokenflow.training.comparison import Job, Plan, Scores
from tokenflow.training.understanding import UnderstandingRecipe, train_understanding
from tokenflow.understanding.model import TokenFlowForUnderstanding

RESULT = "claim.json"
EYES = "eyes.sha256"
SPLITS = ("heldout", "objects", "combinations")
TOGETHER = 32  # questions at a time


@dataclass(frozen=True)
class Variant:
    """What a language model of the comparison reads.

    Args:
        about: What it is, in a line.
        inputs, tokenizer, teacher: As in `UnderstandingConfig`. In the two paths,
            "{home}" stands for the recipe's `home` and "{seed}" for the run's seed.
            The pictures' side is the tokenizer's, with a teacher too.
    """

    about: str = ""
    inputs: str = "last"
    tokenizer: str = "mini"
    teacher: str = ""


@dataclass(frozen=True)
class AskedConfig:
    """Which questions are asked.

    Args:
        questions: How many.
        split: Of `Scenes`: "heldout", "objects" or "combinations".

    Raises:
        ValueError: A value is out of its range.
    """

    questions: int = 2000
    split: str = "heldout"

    def __post_init__(self) -> None:  # noqa: D105
        if self.questions < 1:
            raise ValueError(
                f"train: judged.questions must be at least 1, got {self.questions}"
            )
        if self.split not in SPLITS:
            raise ValueError(
                f"train: judged.split must be one of {list(SPLITS)}, got {self.split!r}"
            )


@dataclass(frozen=True)
class ClaimRecipe:
    """All that defines a comparison.

    Args:
        variants: By name, a `Variant` as YAML holds it.
        understanding: What they share: model, data and steps.
        measure: The variant whose scores the others' are divided by.
        home: Folder of an ablation, whose teacher and tokenizers are read.
        seeds: Of each variant's runs.
        judged: By which questions.

    Raises:
        FileNotFoundError: There is no such recipe of an understanding model.
        ValueError: A variant is none, `measure` is no variant, or what is shared begins
            with a model that has its own input.
    """

    task: ClassVar[str] = "claim"

    variants: dict[str, Any]
    understanding: Plan = field(default_factory=Plan)
    measure: str = "continuous"
    home: str = "runs/ablation-scenes"
    seeds: tuple[int, ...] = (0, 1)
    judged: AskedConfig = field(default_factory=AskedConfig)

    def __post_init__(self) -> None:  # noqa: D105
        if not self.variants or not self.seeds:
            raise ValueError("train: variants and seeds must not be empty")
        if self.measure not in self.variants:
            raise ValueError(
                f"train: measure must be one of the variants {list(self.variants)}, "
                f"got {self.measure!r}"
            )
        for name in self.variants:
            self.run(name, 0)

        if self.run(self.measure, 0).model.init:
            raise ValueError(
                "train: understanding.model.init must be empty, a model to go on from "
                "has its own input"
            )

    def variant(self, name: str) -> Variant:
        """Return what a name means."""
        return config.build(Variant, self.variants[name] or {}, f"variants.{name}.")

    def run(self, name: str, seed: int) -> UnderstandingRecipe:
        """Return the recipe of one run: what is shared, and what is read."""
        shared = self.understanding.read(UnderstandingRecipe, "understanding.")
        read = dataclasses.asdict(self.variant(name))
        del read["about"]
        for path in ("tokenizer", "teacher"):
            filled = read[path].replace("{home}", self.home)
            read[path] = filled.replace("{seed}", str(seed))
        try:
            return dataclasses.replace(
                shared,
                model=dataclasses.replace(shared.model, **read),
                run=dataclasses.replace(shared.run, seed=seed),
            )
        except ValueError as error:
            raise ValueError(f"{error} (in variant {name})") from None


def train_claim(
    recipe: ClaimRecipe,
    folder: Path,
    *,
    only: Sequence[str] = (),
    jobs: int = 1,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train and judge every variant with every seed, as far as that is not done yet.

    Args:
        recipe: All that defines the comparison.
        folder: OUT: OUT/VARIANT-SEED, OUT/claim.json.
        only: Names of the variants to run; all when empty.
        jobs: Runs at a time, each with its share of the threads.
        device: "cpu", "cuda" or "cuda:1".
        say: Takes a line for people.

    Returns:
        What claim.json holds: the recipe, the scores of every run that is finished,
        those of earlier calls included, and what `claim_table.compared` makes of them.

    Raises:
        FileNotFoundError: A variant's tokenizer or teacher is not there.
        ValueError: There is no such variant, or a run in the folder was begun with
            another recipe, tokenizer or teacher, or judged by other questions.
    """
    comparison.check(recipe.variants, only, jobs)
    every = list(_plan(recipe, folder))
    for job in every:
        comparison.same_recipe(job, moved=["model.tokenizer", "model.teacher"])
        if not only or job.variant in only:
            _same_eyes(job)
    runs = comparison.make(every, run_job, only=only, jobs=jobs, device=device, say=say)
    result = {"recipe": dataclasses.asdict(recipe), "runs": runs}
    result["variants"] = claim_table.compared(result)
    return comparison.write_json(folder / RESULT, result)


def _plan(recipe: ClaimRecipe, folder: Path) -> Iterator[Job]:
    """Yield all runs, every variant with the first seed before the second seed."""
    for seed in recipe.seeds:
        for name in recipe.variants:
            yield Job(
                name,
                recipe.variant(name).about,
                seed,
                folder / f"{name}-{seed}",
                recipe.run(name, seed),
                recipe.judged,
            )


def _same_eyes(job: Job) -> str:
    """Return the digest of what a run looks with, which must stay the same."""
    model = job.recipe.model
    name = model.teacher or model.tokenizer
    place = checkpoint.shipped(name) or Path(name)
    if not place.exists():
        raise FileNotFoundError(
            f"train: variant {job.variant} needs {name}, which is not there; name "
            "another with --set home=, or train it with `tokenflow train ablation`"
        )
    return comparison.same_files(job.folder / EYES, place, "tokenizer or teacher")


def run_job(job: Job, device: str, threads: int | None) -> Scores:
    """Train one variant, or go on with it, and judge it; see `train_one`."""
    facts = comparison.train_one(job, train_understanding, device, threads)
    model = TokenFlowForUnderstanding.from_pretrained(
        job.folder / "model", dtype=torch.float32
    )
    blind = job.recipe.model.inputs == "none"
    facts |= {
        "eyes": _same_eyes(job),
        "positions": 0 if blind else model.config.image_tokens,
        "numbers": 0 if blind else model.config.feature_width,
        "kinds": judge(model.to(device).eval(), job.judged, blind=blind),
    }
    return comparison.write_json(job.folder / comparison.SCORES, facts)


def judge(
    model: TokenFlowForUnderstanding, by: AskedConfig, *, blind: bool = False
) -> dict[str, Any]:
    """Ask a model about held-out scenes.

    Args:
        model: In evaluation mode.
        by: Which questions.
        blind: Ask without the pictures.

    Returns:
        For each kind of question: "right", a character for each question in its order,
        1 where the answer is the true one to the letter and 0 elsewhere; "majority",
        the share that the most frequent answer gets, and "majority_answer".
    """
    size = model.config.image_size
    source = SceneQuestions(by.questions, by.split, size=size, seed=SEED)
    said: dict[str, list[tuple[str, str, str, str]]] = {}
    for part in in_batches(range(len(source)), TOGETHER):
        samples = [source[i] for i in part]
        pictures = None if blind else [sample["images"][0] for sample in samples]
        answers = ask(model, [sample["question"] for sample in samples], pictures)
        for sample, answer in zip(samples, answers, strict=True):
            row = sample["kind"], sample["answer"], answer, ""
            said.setdefault(sample["kind"], []).append(row)
    found = {}
    for kind, rows in sorted(said.items()):
        row = scores(rows)
        marks = (plain(answer) == plain(truth) for _, truth, answer, _ in rows)
        found[kind] = {
            "right": "".join(str(int(mark)) for mark in marks),
            "majority": row["majority"],
            "majority_answer": row["majority_answer"],
        }
    return found
