"""`tokenflow train`: make a model with a recipe.

On several devices or machines: `torchrun --nproc-per-node 8 -m tokenflow train …`.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenflow.cli._options import Json, note, say_json

app = typer.Typer(help="Train a model with a recipe.", no_args_is_help=True)

Recipe = Annotated[
    str, typer.Argument(help="A recipe that ships, such as mini, or a YAML file.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a field: --set run.batch=32. Repeatable."),
]
Resume = Annotated[
    str,
    typer.Option(
        help="no; auto: go on from the checkpoint in --out, if there is one; must."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")]
Job = tuple[type, Callable[..., dict[str, Any]]]  # a recipe, what trains with it


def _out(prefix: str) -> Any:
    text = f"Folder of the run; runs/{prefix}RECIPE if not given."
    return typer.Option("--out", "-o", help=text)


def _folder(out: Path | None, prefix: str, recipe: str) -> Path:
    return out or Path("runs") / f"{prefix}{Path(recipe).stem}"


def _command(shipped: str, prefix: str) -> Callable[[Callable[[], Job]], None]:
    """Make a command of a function that says what it trains.

    Args:
        shipped: The recipe that is taken when none is named.
        prefix: Of the run's folder, before the recipe's name, when none is given.
    """

    def add(job: Callable[[], Job]) -> None:
        @app.command(job.__name__, help=job.__doc__)
        def train(
            recipe: Recipe = shipped,
            out: Annotated[Path | None, _out(prefix)] = None,
            changes: Set = None,
            resume: Resume = "no",
            device: Device = "cpu",
            as_json: Json = False,
        ) -> None:
            folder = _folder(out, prefix, recipe)
            _train(*job(), recipe, folder, changes or (), resume, device, as_json)

    return add


@_command("mini", "")
def tokenizer() -> Job:
    """Train a tokenizer; the model is written to OUT/model.

    A run that is resumed keeps the recipe it began with, but for what --set changes.
    """
    from tokenflow.training.tokenizer import TokenizerRecipe, train_tokenizer

    return TokenizerRecipe, train_tokenizer


@_command("mini", "teacher-")
def teacher() -> Job:
    """Train a teacher on pictures with captions; it is written to OUT/model.

    A tokenizer learns from it with --set teacher.source=OUT/model.
    """
    from tokenflow.training.teacher import TeacherRecipe, train_teacher

    return TeacherRecipe, train_teacher


@_command("mini", "generation-")
def generation() -> Job:
    """Train a model that draws what words say; it is written to OUT/model."""
    from tokenflow.training.generation import GenerationRecipe, train_generation

    return GenerationRecipe, train_generation


@_command("scenes", "detector-")
def detector() -> Job:
    """Train the judge of `tokenflow evaluate generation`, written to OUT/model."""
    from tokenflow.training.detector import DetectorRecipe, train_detector

    return DetectorRecipe, train_detector


@_command("mini", "understanding-")
def understanding() -> Job:
    """Teach a language model to read the tokens of pictures; see OUT/model.

    Stage 2 goes on from stage 1 with --set model.init=OUT/model.
    """
    from tokenflow.training.understanding import (
        UnderstandingRecipe,
        train_understanding,
    )

    return UnderstandingRecipe, train_understanding


@_command("mini", "unified-")
def unified() -> Job:
    """Train one model that paints and answers; it is written to OUT/model."""
    from tokenflow.training.unified import UnifiedRecipe, train_unified

    return UnifiedRecipe, train_unified


Seeds = Annotated[
    str | None, typer.Option(help="Such as 0,1; those of the recipe if not given.")
]
Only = Annotated[
    list[str] | None,
    typer.Option(help="Run this variant alone, all if not given. Repeatable."),
]
Jobs = Annotated[
    int, typer.Option(min=1, help="Runs at a time; each has its share of threads.")
]
Docs = Annotated[
    Path | None, typer.Option(help="A page whose table is replaced at the end.")
]


@app.command()
def ablation(
    recipe: Recipe = "scenes",
    out: Annotated[Path | None, _out("ablation-")] = None,
    seeds: Seeds = None,
    only: Only = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="Folder of a trained teacher; one is trained if not given."),
    ] = None,
    jobs: Jobs = 1,
    docs: Docs = None,
    changes: Set = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Train variants of a tokenizer, judge and compare them; see docs/ablation.md.

    Scores are written to OUT/ablation.json, as a table to OUT/ablation.md. Finished
    runs in OUT are kept, interrupted ones go on.
    """
    from tokenflow.training import ablation as task
    from tokenflow.training import ablation_table as table

    folder = _folder(out, "ablation-", recipe)
    how = {"teacher": teacher, "only": only or (), "jobs": jobs, "device": device}
    job = task.AblationRecipe, partial(task.train_ablation, say=note, **how), table
    _compare(*job, recipe, folder, seeds, changes or (), docs, as_json)


@app.command()
def claim(
    recipe: Recipe = "scenes",
    out: Annotated[Path | None, _out("claim-")] = None,
    seeds: Seeds = None,
    only: Only = None,
    jobs: Jobs = 1,
    docs: Docs = None,
    changes: Set = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compare what a language model learns from tokens and from continuous features.

    One new language model for each variant and seed, the same conversations and steps,
    other inputs; needs the tokenizers of `tokenflow train ablation`, or others. Scores
    are written to OUT/claim.json, as a table to OUT/claim.md. Finished runs in OUT are
    kept, interrupted ones go on.
    """
    from tokenflow.training import claim as task
    from tokenflow.training import claim_table as table

    folder = _folder(out, "claim-", recipe)
    how = {"only": only or (), "jobs": jobs, "device": device}
    job = task.ClaimRecipe, partial(task.train_claim, say=note, **how), table
    _compare(*job, recipe, folder, seeds, changes or (), docs, as_json)


def _compare(
    kind: type[Any],
    train: Callable[..., Any],
    table: Any,
    recipe: str,
    folder: Path,
    seeds: str | None,
    changes: Sequence[str],
    docs: Path | None,
    as_json: bool,
) -> None:
    """Read the recipe, make its runs, write and say what came of them."""
    import dataclasses

    from tokenflow._files import writing
    from tokenflow.training import config

    try:
        chosen = config.load(kind, recipe, changes)
        if seeds is not None:
            found = seeds.split(",")
            if not all(seed.strip().isdecimal() for seed in found):
                raise ValueError(f"--seeds must be numbers such as 0,1, got {seeds}")
            numbers = tuple(int(seed) for seed in found)
            chosen = dataclasses.replace(chosen, seeds=numbers)
        result = train(chosen, folder)
        text = table.as_markdown(result)
        with writing(folder / f"{kind.task}.md") as beside:
            beside.write_text(text, encoding="utf-8")
        if docs is not None:
            table.write_docs(result, docs)
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    except KeyboardInterrupt:
        note("stopped; the same command goes on")
        raise typer.Exit(130) from None
    if as_json:
        say_json(result)
    else:
        typer.echo(text, nl=False)


def _train(
    kind: type,
    train: Callable[..., dict[str, Any]],
    name: str,
    folder: Path,
    changes: Sequence[str],
    resume: str,
    device: str,
    as_json: bool,
) -> None:
    """Read the recipe, train, say what came of it."""
    from tokenflow.training import config
    from tokenflow.training.state import FOLDER, Checkpoints
    from tokenflow.training.world import World

    first = not int(os.environ.get("RANK", 0))  # torchrun's others say nothing
    if resume not in ("no", "auto", "must"):
        raise typer.BadParameter(f"--resume must be no, auto or must, got {resume}")
    begun = (folder / config.RECIPE).is_file()
    try:
        if resume == "must" or (resume == "auto" and begun):
            chosen = config.of_run(kind, folder, changes)
            found = Checkpoints(folder / FOLDER, World()).current()
            if resume == "must" and found is None:
                raise FileNotFoundError(
                    f"train: nothing to resume, there is no checkpoint in "
                    f"{folder / FOLDER}"
                )
        else:
            chosen = config.load(kind, name, changes)
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    try:
        facts = train(chosen, folder, resume=resume != "no", device=device)
    except (FileExistsError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    except KeyboardInterrupt as stop:  # and Stopped, which has saved
        if first:
            step = f"step {stop.step}" if hasattr(stop, "step") else "the checkpoint"
            note(f"stopped; go on from {step} with --resume auto --out {folder}")
        raise typer.Exit(getattr(stop, "status", 130)) from None
    if not first:
        return
    if as_json:
        say_json({"model": str(folder / "model"), **facts})
    else:
        shown = ", ".join(
            f"{fact} {value:.4g}" if isinstance(value, float) else f"{fact} {value}"
            for fact, value in facts.items()
        )
        typer.echo(f"{folder / 'model'}: {shown}")
