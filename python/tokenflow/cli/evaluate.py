"""`tokenflow evaluate`: how good a model is, in numbers."""

from pathlib import Path
from typing import Annotated

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
            help="glyphs (held-out), photos (installed samples), or a folder."
        ),
    ] = "glyphs",
    count: Annotated[
        int, typer.Option(min=1, help="Glyph pictures, or files of a folder, at most.")
    ] = 512,
    batch_size: BatchSize = 64,
    grid: Annotated[
        Path | None,
        typer.Option(help="Write originals over redrawn pictures here, as a PNG."),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Redraw pictures: PSNR, SSIM, use of the codebook, bits, speed, baselines."""
    from tokenflow.evaluation import pictures
    from tokenflow.evaluation.reconstruction import (
        as_text,
        evaluate_reconstruction,
        save_grid,
    )

    if data not in ("glyphs", "photos") and not Path(data).is_dir():
        raise typer.BadParameter(
            f"--data must be 'glyphs', 'photos' or a folder, got {data}"
        )
    tokenizer = load_model(model, device)
    try:
        images, names = pictures.load(
            data, size=tokenizer.config.image_size, count=count
        )
    except ValueError as error:
        note(f"failed: {error}")
        raise typer.Exit(1) from None
    note(f"{len(names)} pictures from {data}")
    if grid is not None:
        try:
            save_grid(tokenizer, images[:32], grid)
        except ValueError as error:
            raise typer.BadParameter(f"--grid: {error}") from error
        note(f"wrote {grid}")
    result = evaluate_reconstruction(tokenizer, images, batch=batch_size)
    if as_json:
        say_json({"model_name": model, "data": data, **result})
    else:
        typer.echo(as_text(result))
