"""`tokenflow evaluate`: how good a model is, in numbers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tokenflow.cli._evaluate_generation import generation
from tokenflow.cli._options import (
    BatchSize,
    Device,
    Json,
    Model,
    Report,
    load_model,
    note,
    progress,
    say_json,
)

if TYPE_CHECKING:
    from tokenflow.evaluation.pictures import Pictures
    from tokenflow.evaluation.reconstruction import Judges

GRID = 32  # pictures on the sheet of --grid
WEIGHTS = "; see docs/evaluation.md"

app = typer.Typer(help="How good a model is, in numbers.", no_args_is_help=True)
app.command()(generation)


@app.command()
def reconstruction(
    model: Model = "mini",
    data: Annotated[
        str,
        typer.Option(
            help="glyphs or scenes (drawn, held out), photos (installed samples), "
            "or a folder."
        ),
    ] = "glyphs",
    protocol: Annotated[
        Literal["plain", "imagenet"],
        typer.Option(
            help="imagenet: all pictures of the validation folder, as published."
        ),
    ] = "plain",
    count: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pictures at most; 512 drawn ones, or all of a folder, if not given.",
        ),
    ] = None,
    inception: Annotated[
        Path | None,
        typer.Option(help=f"Weights of FID's Inception, for rFID{WEIGHTS}."),
    ] = None,
    lpips_vgg: Annotated[
        Path | None,
        typer.Option(help=f"Weights of VGG16, for LPIPS{WEIGHTS}."),
    ] = None,
    lpips_heads: Annotated[
        Path | None, typer.Option(help=f"Weights of the heads of LPIPS{WEIGHTS}.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of a teacher, for fréchet_teacher."),
    ] = None,
    batch_size: BatchSize = 64,
    grid: Annotated[
        Path | None,
        typer.Option(help="Write originals over redrawn pictures here, as a PNG."),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Redraw pictures: PSNR, SSIM, rFID, use of the codebook, bits, speed, baselines.

    Pictures that cannot be read are listed and left out.
    """
    from tokenflow.evaluation.pictures import batches
    from tokenflow.evaluation.reconstruction import evaluate_reconstruction
    from tokenflow.evaluation.table import as_text

    _check(data, protocol, count, lpips_vgg, lpips_heads)
    tokenizer, report = load_model(model, device), Report()
    judges = _judges(tokenizer.device, inception, lpips_vgg, lpips_heads, teacher)
    pictures = _pictures(data, protocol, count, tokenizer.config.image_size)
    if grid is not None:
        _save_grid(tokenizer, pictures, grid)

    def failed(name: str, error: Exception) -> None:
        report.fail(Path(data) / name, error)

    parts = progress(batches(pictures, batch_size, failed), len(pictures), "picture")
    try:
        result = evaluate_reconstruction(
            tokenizer, parts, judges=judges, published=protocol == "imagenet"
        )
    except ValueError as error:
        _list(report)
        note(f"failed: {error}")
        raise typer.Exit(1) from None
    _list(report)
    if as_json:
        about = {"model_name": model, "data": data, "protocol": protocol}
        say_json({**about, **result, "failed": report.failed})
    else:
        typer.echo(as_text(result))
    if report.failed:
        note(f"{len(report.failed)} of {len(pictures)} pictures failed")
        raise typer.Exit(1)


@app.command()
def understanding(
    model: Model = "mini",
    task: Annotated[
        Literal["scenes-vqa", "pope", "gqa", "vqav2", "mme"],
        typer.Option(help="Drawn scenes, scored here; or a benchmark, answered."),
    ] = "scenes-vqa",
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Questions at most; 1000 about scenes if not given."),
    ] = None,
    split: Annotated[
        Literal["heldout", "objects", "combinations"],
        typer.Option(help="Of the scenes: what training never shows."),
    ] = "heldout",
    blind: Annotated[
        str | None,
        typer.Option(help="Who is asked without pictures; --model if not given."),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="A benchmark's questions, one JSON a line.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of a benchmark's pictures.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File (mme: folder) for the predictions."),
    ] = None,
    batch_size: BatchSize = 16,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Ask about pictures: exact answers about scenes, or a benchmark's predictions.

    Questions about scenes are scored per kind, beside blind and most frequent answers.
    A benchmark's predictions are written for its own script to score; pictures that
    cannot be read are listed and their questions left out.
    """
    from tokenflow.evaluation import benchmarks
    from tokenflow.evaluation import questions as scenes

    asked: list[dict[str, Any]] = []
    if task == "scenes-vqa":
        if questions or images or out:
            raise typer.BadParameter("--questions, --images, --out are a benchmark's")
    elif questions is None or images is None or out is None:
        raise typer.BadParameter(f"--task {task} needs --questions, --images and --out")
    else:
        try:
            asked = benchmarks.read_questions(questions, task)[:count]
        except (FileNotFoundError, ValueError) as error:
            raise typer.BadParameter(str(error)) from None
    kind = "TokenFlowForUnderstanding"
    judged = load_model(model, device, kind)

    def watch(parts: Any) -> Any:
        return progress(parts, len(asked) or count or 1000, "question")

    if task != "scenes-vqa":
        assert images is not None and out is not None
        folder, report = images, Report()

        def failed(name: str, error: Exception) -> None:
            report.fail(folder / name, error)

        try:
            answers = benchmarks.predict(
                judged, asked, images, batch_size=batch_size, watch=watch, failed=failed
            )
        except ValueError as error:
            raise OSError(str(error)) from error
        benchmarks.write_predictions(out, task, asked, answers)
        _list(report)
        count = len(asked) - len(report.failed)
        result = {"model_name": model, "task": task, "questions": count}
        if as_json:
            say_json({**result, "out": str(out), "failed": report.failed})
        else:
            typer.echo(f"{out}: {count} answers")
        if report.failed:
            note(f"{len(report.failed)} of {len(asked)} pictures failed")
            raise typer.Exit(1)
        return
    found = scenes.evaluate_scenes(
        judged,
        count or 1000,
        split=split,
        batch_size=batch_size,
        blind=None if blind is None else load_model(blind, device, kind),
        watch=watch,
    )
    if as_json:
        say_json({"model_name": model, "task": task, **found})
    else:
        typer.echo(scenes.as_text(found))


def _check(
    data: str,
    protocol: str,
    count: int | None,
    lpips_vgg: Path | None,
    lpips_heads: Path | None,
) -> None:
    """Refuse options that contradict each other, before anything is loaded."""
    from tokenflow.evaluation.pictures import DRAWN

    if data not in (*DRAWN, "photos") and not Path(data).is_dir():
        raise typer.BadParameter(
            f"--data must be 'glyphs', 'scenes', 'photos' or a folder, got {data}"
        )
    if protocol == "imagenet":
        if not Path(data).is_dir():
            raise typer.BadParameter(
                f"--protocol imagenet needs a folder of class folders, got {data}"
            )
        if count is not None:
            raise typer.BadParameter("--protocol imagenet takes all; leave out --count")
    if (lpips_vgg is None) != (lpips_heads is None):
        raise typer.BadParameter("LPIPS needs both --lpips-vgg and --lpips-heads")


def _pictures(data: str, protocol: str, count: int | None, size: int) -> "Pictures":
    from tokenflow.evaluation import imagenet, pictures

    try:
        if protocol == "plain":
            found = pictures.load(data, size=size, count=count)
        else:
            found = imagenet.load(data, size=size)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if protocol == "imagenet" and (complaint := imagenet.complaint(found)):
        note(complaint)
    note(f"{len(found)} pictures from {data}")
    return found


def _judges(
    device: Any,
    inception: Path | None,
    lpips_vgg: Path | None,
    lpips_heads: Path | None,
    teacher: str | None,
) -> "Judges":
    """Read the networks that judge.

    Raises:
        OSError: A file is missing or is something else.
    """
    from tokenflow.evaluation.reconstruction import Judges

    found: dict[str, Any] = {}
    try:
        if inception is not None:
            from tokenflow.evaluation.inception import Inception

            found["inception"] = Inception.from_file(inception).to(device)
        if lpips_vgg is not None and lpips_heads is not None:
            from tokenflow.evaluation.lpips import LPIPS

            found["lpips"] = LPIPS.from_files(lpips_vgg, lpips_heads).to(device)
        if teacher is not None:
            from tokenflow.evaluation.teacher_features import TeacherFeatures
            from tokenflow.tokenizer.teachers import load_teacher

            folder = Path(teacher)
            name = folder.resolve().name if folder.exists() else teacher
            found["teacher"] = TeacherFeatures(load_teacher(teacher).to(device), name)
    except ValueError as error:
        raise OSError(str(error)) from error
    return Judges(**found)


def _save_grid(tokenizer: Any, pictures: "Pictures", path: Path) -> None:
    from tokenflow.evaluation.grid import save_grid
    from tokenflow.evaluation.pictures import batches

    first = next(batches(pictures, GRID, lambda name, error: None), None)
    try:
        save_grid(tokenizer, [] if first is None else first, path)
    except ValueError as error:
        raise typer.BadParameter(f"--grid: {error}") from error
    note(f"wrote {path}")


def _list(report: Report) -> None:
    for entry in report.failed:
        note(f"failed: {entry['input']}: {entry['reason']}")
