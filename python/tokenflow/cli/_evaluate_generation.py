"""`tokenflow evaluate generation`: do drawn pictures show what their words say?"""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tokenflow.cli._options import (
    BatchSize,
    Device,
    Json,
    Model,
    load_model,
    note,
    say_json,
)

# What a table in --out must have in common with what is asked for.
SAME = ("model", "weights", "judge", "task", "split", "prompts", "pictures", "seed")


def generation(
    model: Model = "mini",
    detector: Annotated[
        str,
        typer.Option(
            help="Who judges: mini, or a folder from `tokenflow train detector`."
        ),
    ] = "mini",
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
    table: Annotated[
        Literal["sampling", "guidance"] | None,
        typer.Option(
            help="sampling: the paper's five ways to sample, k scaled to the model's "
            "book; guidance: from 0 to 10. One row each."
        ),
    ] = None,
    refinement: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=3,
            help="Looks at each scale, as the paper's with k scaled to the model's "
            "book; the model's if not given. Again for a row.",
        ),
    ] = None,
    guidance: Annotated[
        list[float] | None,
        typer.Option(
            "--guidance-scale",
            min=0.0,
            help="The model's if not given. Again for a row.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Keep the rows in this JSON file; those that are there are not drawn "
            "again.",
        ),
    ] = None,
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
    batch_size: BatchSize = 32,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Draw prompts and have a detector say whether the pictures show what they say.

    Beside the scores stand those of true pictures that the model's tokenizer redraws,
    and how often the detector is right.
    """
    from tqdm import tqdm

    from tokenflow.evaluation import geneval, sampling_table
    from tokenflow.evaluation.detector import Detector

    rows = len(guidance or [0]) * len(refinement or [0])
    if output is not None and (table or rows > 1):
        raise typer.BadParameter("--output takes the pictures of one setting only")
    if output is not None and output.exists() and any(output.iterdir()):
        raise typer.BadParameter(f"--output: {output} is not empty")
    try:
        judge = Detector.from_pretrained(detector)
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(f"--detector: {error}") from None
    drawer = load_model(model, device, "TokenFlowForGeneration")
    settings = _settings(table, drawer.config, guidance, refinement)
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
    wanted = geneval.tasks(prompts, split)
    ceiling = geneval.redrawn(drawer.image_tokenizer, true)
    facts = {
        "model": model,
        "weights": sampling_table.weight_sum(drawer),
        "judge": sampling_table.weight_sum(judge),
        "task": task,
        "split": split,
        "prompts": len(wanted),
        "pictures": len(wanted) * images,
        "seed": seed,
        "detector": checked,
        "ceiling": geneval.accuracies(geneval.judge(judge, ceiling)),
    }
    total = len(wanted) * images * len(settings)
    with tqdm(total=total, unit="picture", disable=None, file=sys.stderr) as bar:

        def score(setting: sampling_table.Setting) -> dict[str, float]:
            return geneval.evaluate_generation(
                drawer,
                wanted,
                judge,
                guidance=setting.guidance,
                refinement=setting.refinement,
                images=images,
                seed=seed,
                batch=batch_size,
                output=output,
                tick=bar.update,
            )

        try:
            result = sampling_table.fill(facts, settings, score, out, SAME)
        except ValueError as error:
            note(f"failed: {error}")
            raise typer.Exit(1) from None
    if as_json:
        say_json(result)
    else:
        typer.echo(sampling_table.as_markdown(result))


def _settings(
    table: str | None,
    config: Any,
    guidance: list[float] | None,
    refinement: list[int] | None,
) -> list[Any]:
    """Return the rows that the options ask for."""
    from tokenflow.evaluation.sampling_table import (
        Setting,
        guidance_rows,
        sampling_rows,
        scaled,
    )
    from tokenflow.generation.sampling import PASSES

    entries, usual = config.codebook_size, config.sampling
    strengths = guidance or [usual["guidance_scale"]]
    looks = [scaled(PASSES[passes], entries) for passes in refinement or ()]
    looks = looks or [tuple((k, p) for k, p in usual["refinement"])]
    if table == "sampling":
        if refinement or len(strengths) > 1:
            raise typer.BadParameter(
                "--table sampling has its own looks and takes one --guidance-scale"
            )
        return sampling_rows(entries, *strengths)
    if table == "guidance":
        if guidance or len(looks) > 1:
            raise typer.BadParameter(
                "--table guidance has its own guidance and takes one --refinement"
            )
        return guidance_rows(*looks)
    return [Setting(strength, look) for strength in strengths for look in looks]
