"""`tokenflow evaluate`: how good a model is, in numbers."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

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


@app.callback()
def _group() -> None:
    pass  # a callback makes this a group while it has one command


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
def generation(
    detector: Annotated[
        Path,
        typer.Option(help="Folder of a judge, from `tokenflow train detector`."),
    ],
    model: Model = "mini",
    task: Annotated[
        Literal["scenes-geneval"],
        typer.Option(help="Prompts of GenEval's six categories, of our small world."),
    ] = "scenes-geneval",
    split: Annotated[
        Literal["heldout", "objects", "combinations"],
        typer.Option(help="objects, combinations: what training never showed."),
    ] = "heldout",
    prompts: Annotated[
        int, typer.Option(min=1, help="Prompts of each category.")
    ] = 100,
    images: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 4,
    refinement: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=3, help="Looks at each scale; 3 if not given. Again for a table."
        ),
    ] = None,
    guidance: Annotated[
        list[float] | None,
        typer.Option(
            "--guidance-scale", min=0.0, help="7.5 if not given. Again for a table."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write pictures and prompts here as GenEval's own judge "
            "reads them; of one setting only."
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Judge with a detector that is not good enough."),
    ] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Draw prompts and have a detector say whether the pictures show what they say.

    Beside the scores stand those of true pictures that the model's tokenizer redraws,
    and how often the detector is right.
    """
    from tqdm import tqdm

    from tokenflow.evaluation import geneval
    from tokenflow.evaluation.detector import Detector
    from tokenflow.generation.sampling import PASSES

    settings = [(g, r) for g in guidance or [7.5] for r in refinement or [3]]
    if output is not None and len(settings) > 1:
        raise typer.BadParameter("--output takes the pictures of one setting only")
    if output is not None and output.exists() and any(output.iterdir()):
        raise typer.BadParameter(f"--output: {output} is not empty")
    try:
        judge = Detector.from_pretrained(detector)
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(f"--detector: {error}") from None
    drawer = load_model(model, device, "TokenFlowForGeneration")
    judge.to(drawer.device)
    true = geneval.true_pictures(
        prompts, drawer.image_tokenizer.config.image_size, split
    )
    checked = geneval.check_detector(judge, true)
    if not (force or geneval.trusted(checked)):
        shares = ", ".join(f"{k} {v['mean']:.1%}" for k, v in checked.items())
        note(
            f"failed: the detector is right less often than {geneval.TRUSTED:.0%} "
            f"({shares}); train it longer, or judge all the same with --force"
        )
        raise typer.Exit(1)
    ceiling = geneval.redrawn(drawer.image_tokenizer, true)
    result = {
        "model": model,
        "task": task,
        "split": split,
        "detector": checked,
        "ceiling": geneval.accuracies(geneval.judge(judge, ceiling)),
    }
    wanted, scores = geneval.tasks(prompts, split), []
    total = len(wanted) * images * len(settings)
    with tqdm(total=total, unit="picture", disable=None, file=sys.stderr) as bar:
        for strength, passes in settings:
            found = geneval.evaluate_generation(
                drawer,
                wanted,
                judge,
                guidance=strength,
                refinement=PASSES[passes],
                images=images,
                seed=seed,
                output=output,
                tick=bar.update,
            )
            scores.append({"guidance": strength, "passes": passes, "scores": found})
    result |= {"prompts": len(wanted), "pictures": len(wanted) * images}
    result["scores"] = scores
    if as_json:
        say_json(result)
    else:
        typer.echo(geneval.as_text(result))


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
