"""`tokenflow generate`: words to a picture, scale by scale."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenflow.cli._options import (
    Device,
    Json,
    Model,
    Overwrite,
    load_model,
    note,
    progress,
    say_json,
)

if TYPE_CHECKING:
    from PIL import Image

GAP = 4  # pixels between the pictures of a sheet

app = typer.Typer()


@app.command()
def generate(
    prompts: Annotated[
        list[str],
        typer.Argument(help="What is to be seen, in quotes; several get a row each."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path(
        "generated.png"
    ),
    model: Model = "mini",
    grid: Annotated[
        int, typer.Option(min=1, help="Pictures of each prompt on the sheet.")
    ] = 1,
    seed: Annotated[
        int | None, typer.Option(help="Of the draws; a new one if not given.")
    ] = None,
    show_scales: Annotated[
        bool,
        typer.Option("--show-scales", help="Show each picture after every scale."),
    ] = False,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="How closely to follow the words; the model's own default."
        ),
    ] = None,
    passes: Annotated[
        int | None,
        typer.Option(
            min=1, max=3, help="Looks at each scale, as the paper's; or the model's."
        ),
    ] = None,
    top_k: Annotated[
        list[int] | None,
        typer.Option(
            min=0, help="Instead of --passes: k of a look, 0 for all. Again for more."
        ),
    ] = None,
    top_p: Annotated[
        list[float] | None,
        typer.Option(min=0.0, max=1.0, help="Its p, 0 for all; as often as --top-k."),
    ] = None,
    negative: Annotated[
        str | None, typer.Option(help="What is not to be seen; the model's default.")
    ] = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Draw pictures of what the words say.

    One seed gives the same picture every time on one machine.
    """
    if out.suffix.lower() != ".png" or out.is_dir():
        raise typer.BadParameter(f"--out must be a .png file, got {out}")
    if out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} is there already; --overwrite replaces it")
    if len(top_k or ()) != len(top_p or ()):
        raise typer.BadParameter(
            "--top-k and --top-p must be given equally often, once for each look, got "
            f"{len(top_k or ())} and {len(top_p or ())}"
        )
    if not all(prompt.strip() for prompt in prompts):
        raise typer.BadParameter("a prompt must say something, one is empty")

    import torch

    from tokenflow.generation import sampling

    generator = torch.Generator()
    seed = generator.seed() % 2**32 if seed is None else seed
    drawer = load_model(model, device, "TokenFlowForGeneration")
    _check_words(drawer, *prompts, negative or "")
    looks = sampling.PASSES[passes] if passes else None
    if top_k and top_p:
        looks = [*zip(top_k, top_p, strict=True)]
    steps = drawer.stream(
        prompts,
        guidance_scale=guidance,
        refinement=looks,
        negative_prompt=negative,
        generator=generator.manual_seed(seed),
        num_images=grid,
        output="pil" if show_scales else "tokens",
    )
    try:
        seen = list(progress(steps, len(drawer.scales), "scale", lambda _: 1))
    except ValueError as error:
        note(f"failed: {error}")
        raise typer.Exit(1) from None
    if show_scales:
        pictures = [after[row] for row in range(len(seen[-1])) for after in seen]
        columns = len(seen)
    else:
        pictures = drawer.image_tokenizer.decode(seen[-1])
        columns = grid if len(prompts) > 1 else _columns(grid)
    _write(sheet(pictures, columns), out)
    facts = {"prompts": prompts, "model": model, "seed": seed}
    facts |= {"pictures": len(seen[-1]), "tokens": drawer.config.num_tokens}
    facts |= {"output": str(out.resolve())}
    if as_json:
        say_json(facts)
    else:
        typer.echo(f"{out}  seed {seed}")


def _check_words(drawer: Any, *texts: str) -> None:
    """Refuse words that a model of a small world was never taught."""
    from difflib import get_close_matches

    from tokenflow.generation.prompts import KNOWN, strange

    for text in texts:
        if odd := strange(drawer.text_tokenizer, text):
            known = drawer.text_tokenizer.init_kwargs[KNOWN]
            near = get_close_matches(odd[0], known, cutoff=0.5)
            raise typer.BadParameter(
                f"the model was never taught {', '.join(map(repr, odd))}; it knows "
                f"{len(known)} words"
                + (f", {', '.join(map(repr, near))} among them" if near else "")
            )


def _columns(pictures: int) -> int:
    """Return the columns of a sheet as square as can be."""
    return next(n for n in range(1, pictures + 1) if n * n >= pictures)


def sheet(pictures: Sequence["Image.Image"], columns: int) -> "Image.Image":
    """Return pictures of one size in rows; one alone as it is."""
    from PIL import Image

    if len(pictures) == 1:
        return pictures[0]
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    size = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    made = Image.new("RGB", size, "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        made.paste(picture, (column * (width + GAP), row * (height + GAP)))
    return made


def _write(picture: Any, out: Path) -> None:
    from tokenflow._files import writing

    with writing(out) as beside:
        picture.save(beside, format="PNG")
