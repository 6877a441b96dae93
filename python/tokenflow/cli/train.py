"""`tokenflow train`: make a model with a recipe of this repository."""

from pathlib import Path
from typing import Annotated

import typer

from tokenflow.cli._options import Json, note, say_json

app = typer.Typer(help="Train a model with a recipe.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass  # a callback makes this a group while it has one command


@app.command()
def tokenizer(
    recipe: Annotated[
        str, typer.Option(help="A shipped recipe (mini) or a TOML file.")
    ] = "mini",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the run; made if need be.")
    ] = Path("runs/mini"),
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Time limit; the recipe's if not given.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Step limit; the recipe's if not given.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures per step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and pictures.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that share a batch.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")] = "cpu",
    as_json: Json = False,
) -> None:
    """Train a tokenizer on drawn pictures; the model is written to OUT/model.

    A resumed run keeps its recipe but for the options that are given.
    """
    import dataclasses

    from tokenflow import TokenFlowConfig
    from tokenflow.training.config import load
    from tokenflow.training.run import read_recipe
    from tokenflow.training.tokenizer import train_tokenizer

    given = {"minutes": minutes, "steps": steps, "batch": batch, "seed": seed}
    given |= {"threads": threads}
    changes = {name: value for name, value in given.items() if value is not None}
    try:
        if resume:
            config = dataclasses.replace(read_recipe(out), **changes)
        else:
            config = load(recipe, **changes)
        TokenFlowConfig.preset(config.preset, **config.model)
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    try:
        facts = train_tokenizer(config, out, resume=resume, device=device, say=note)
    except FileExistsError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        say_json({"model": str(out / "model"), **facts})
    else:
        typer.echo(
            f"{out / 'model'}: {facts['pictures']} pictures in {facts['minutes']:.1f} "
            f"minutes, held-out {facts['psnr']:.2f} dB, usage {facts['usage']:.1%}"
        )
