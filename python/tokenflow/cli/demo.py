"""`tokenflow demo`: one picture into tokens and back, shown scale by scale."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenflow.cli._options import Device, Json, Model, load_model, note, say_json

if TYPE_CHECKING:
    from PIL import Image

    from tokenflow import TokenFlowTokenizer

SHOWN = 5  # indices of each scale
REPEATS = 5  # of which the fastest counts

app = typer.Typer()


@app.command()
def demo(
    picture: Annotated[
        Path | None,
        typer.Argument(help="A picture of yours; a sample when not given."),
    ] = None,
    model: Model = "mini",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The strip to write.")
    ] = Path("demo.png"),
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Show a picture's tokens and what each scale of them redraws.

    Writes a strip: the original, the picture after each scale, the final one.
    """
    from tokenflow.samples import SCENE

    source = picture or SCENE
    original = _open(source)
    tokenizer = load_model(model, device)
    if out.suffix.lower() != ".png" or out.is_dir():
        raise typer.BadParameter(f"--out must be a .png file, got {out}")
    if out.resolve() == source.resolve():
        raise typer.BadParameter(f"--out must not be the picture itself, {out}")
    facts, pictures = measure(tokenizer, original)
    facts = {
        "picture": str(source) if picture else "the shipped sample",
        "model": model,
        "fingerprint": tokenizer.fingerprint(),
        **facts,
        "output": str(out.resolve()),
    }
    _write(pictures, facts, out)
    if as_json:
        say_json(facts)
    else:
        _say(facts)


def _open(source: Path) -> "Image.Image":
    from tokenflow.tokenizer.processing import open_image

    try:
        return open_image(source)
    except (OSError, ValueError) as error:
        note(f"failed: {source}: {error}")
        raise typer.Exit(1) from None


def measure(
    tokenizer: "TokenFlowTokenizer", original: "Image.Image"
) -> tuple[dict[str, Any], list["Image.Image"]]:
    """Return what there is to tell, and the pictures: as seen, after each scale."""
    import torch

    import tokenflow_ext
    from tokenflow.cli.reconstruct import psnr
    from tokenflow.tokenizer.processing import fit

    side = tokenizer.config.image_size
    seen = fit(original, side)
    encoded = tokenizer.encode(seen)
    indices = encoded.indices[0].tolist()
    pictures, scales, end = [seen], [], 0
    for height, width in encoded.scales:
        start, end = end, end + height * width
        redrawn = tokenizer.decode(encoded.indices[:, :end], scales=encoded.scales)[0]
        pictures.append(redrawn)
        scales.append(
            {
                "height": height,
                "width": width,
                "tokens": end - start,
                "first_indices": indices[start : min(end, start + SHOWN)],
                "psnr": psnr(seen, redrawn),
            }
        )
    entries = tokenizer.config.codebook_size
    facts = {
        "picture_size": list(original.size),
        "seen_as": list(seen.size),
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "codebook_size": entries,
        "device": str(tokenizer.device),
        "threads": torch.get_num_threads(),
        "isa": tokenflow_ext.info()["isa"] or "torch fallback",
        "scales": scales,
        "tokens": end,
        "bits_per_pixel": end * math.log2(entries) / (side * side),
        "encode_ms": _fastest(lambda: tokenizer.encode(seen).indices.cpu()),
        "decode_ms": _fastest(lambda: tokenizer.decode(encoded)),
    }
    return facts, pictures


def _fastest(work: Callable[[], Any]) -> float:
    """Return the milliseconds of the fastest of a few runs."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


def _write(pictures: list["Image.Image"], facts: dict[str, Any], out: Path) -> None:
    from tokenflow._files import writing
    from tokenflow.cli._strip import strip

    side = facts["seen_as"][0]
    labels = [("original", f"as the model sees it, {side}x{side}")]
    for number, scale in enumerate(facts["scales"], start=1):
        name = f"{scale['height']}x{scale['width']}"
        last = number == len(facts["scales"])
        some = "1 token" if scale["tokens"] == 1 else f"{scale['tokens']} tokens"
        more = "" if number == 1 else "+ "
        labels.append(
            (
                f"final, after {name}" if last else f"after {name}",
                f"{more}{some}, {scale['psnr']:.1f} dB",
            )
        )
    caption = (
        f"TokenFlow, model {Path(facts['model']).name}: {facts['tokens']} tokens, "
        f"{facts['bits_per_pixel']:.2f} bits per pixel"
    )
    with writing(out) as beside:
        strip(pictures, labels, caption).save(beside, format="PNG")


def _say(facts: dict[str, Any]) -> None:
    width, height = facts["picture_size"]
    side = facts["seen_as"][0]
    typer.echo(
        f"picture  {facts['picture']}, {width}×{height}, seen as {side}×{side}\n"
        f"model    {facts['model']} ({facts['fingerprint']}), "
        f"{facts['parameters']:,} parameters, {facts['codebook_size']:,} entries\n"
        f"device   {facts['device']}, {facts['threads']} threads, {facts['isa']}\n"
    )
    typer.echo(f"{'scale':<7}{'tokens':>6}   {'first indices':<30}{'PSNR so far':>11}")
    for scale in facts["scales"]:
        name = f"{scale['height']}×{scale['width']}"
        first = " ".join(map(str, scale["first_indices"]))
        more = " …" if scale["tokens"] > SHOWN else ""
        typer.echo(
            f"{name:<7}{scale['tokens']:>6}   {first + more:<30}"
            f"{scale['psnr']:>8.2f} dB"
        )
    typer.echo(
        f"\n{facts['tokens']} tokens, {facts['bits_per_pixel']:.3f} bits per pixel\n"
        f"encode {facts['encode_ms']:.1f} ms, decode {facts['decode_ms']:.1f} ms "
        f"(fastest of {REPEATS})\n"
        f"wrote {facts['output']}: original | after each scale | final"
    )
