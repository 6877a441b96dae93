"""`tokenflow report`: a training run on one page."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page; RUN/report.html if not given."),
    ] = None,
) -> None:
    """Show a training run: curves, held-out pictures, codebook, recipe.

    The page is one HTML file without scripts, to be opened in any browser or sent to
    somebody.
    """
    from tokenflow.training.report import write_report

    try:
        typer.echo(write_report(run, out))
    except FileNotFoundError as error:
        raise typer.BadParameter(str(error)) from error
