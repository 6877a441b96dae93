"""`tokenflow answer`: a question about a picture, answered as the words come."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenflow.cli._options import Device, Json, Model, load_model, note, say_json

app = typer.Typer()


@app.command()
def answer(
    pictures: Annotated[
        list[Path],
        typer.Argument(help="One picture, or several.", metavar="PICTURE..."),
    ],
    question: Annotated[
        str,
        typer.Argument(
            help="What to ask about it; may say where each picture goes with <image>."
        ),
    ],
    model: Model = "mini",
    max_words: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            min=1,
            help="Length of the answer, at most; 512 if not given, or less where the "
            "model's context is full.",
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the likeliest word each time.")
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option(help="Of the draws, with a temperature above 0.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Answer a question about pictures.

    The words are printed as they come; with --json once they are all there.
    """
    from tokenflow.tokenizer.processing import open_image

    opened = []
    for path in pictures:
        try:
            opened.append(open_image(path))
        except (OSError, ValueError) as error:
            words = getattr(error, "strerror", None) or str(error)
            reason = words.removeprefix("open_image: ").removeprefix(f"{path} ")
            note(f"failed: {path}: {reason}")
    if len(opened) < len(pictures):
        raise typer.Exit(1)

    import torch

    speaker = load_model(model, device, "TokenFlowForUnderstanding")
    how: dict[str, Any] = {"do_sample": temperature > 0}
    if max_words is not None:
        how["max_new_tokens"] = max_words
    if temperature > 0:
        how["temperature"] = temperature
    if seed is not None:
        torch.manual_seed(seed)
    try:
        pieces = speaker.answer(opened, question, stream=True, **how)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    said = []
    for piece in pieces:
        said.append(piece)
        if not as_json:
            typer.echo(piece, nl=False)
    if as_json:
        names = [str(path) for path in pictures]
        facts = {"pictures": names, "question": question, "answer": "".join(said)}
        say_json({"model": model, **facts})
    else:
        typer.echo("")
