"""`tokenflow decode`: `.tok` files to pictures."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenflow.cli._options import (
    BatchSize,
    Device,
    Json,
    Model,
    Out,
    Overwrite,
    Report,
    load_model,
    progress,
)
from tokenflow.cli._paths import Job, plan
from tokenflow.cli._pictures import write_png

if TYPE_CHECKING:
    from tokenflow import TokenFlowTokenizer
    from tokenflow.tokenizer.tokfile import Tokens

app = typer.Typer()
Pairs = list[tuple[Job, "Tokens"]]


@app.command()
def decode(
    sources: Annotated[
        list[Path], typer.Argument(help=".tok files, and folders of them.")
    ],
    out: Out,
    model: Model = "mini",
    batch_size: BatchSize = 16,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn tokens back into pictures: one PNG a .tok file."""
    from tokenflow.tokenizer import tokfile

    suffixes = [tokfile.SUFFIX]
    jobs = plan(sources, out, suffixes=suffixes, suffix=".png", overwrite=overwrite)
    tokenizer, report = load_model(model, device), Report()
    read = _read(tokenizer, jobs, report)
    for batch in progress(_alike(read, batch_size), len(jobs), "picture"):
        _draw(tokenizer, batch, report)
    summary = {"model": model, "fingerprint": tokenizer.fingerprint()}
    report.finish(summary, "{input} -> {output}  {width}×{height}", as_json)


def _read(
    tokenizer: "TokenFlowTokenizer", jobs: Iterable[Job], report: Report
) -> Iterator[tuple[Job, "Tokens"]]:
    """Yield the tokens that this model can draw; the rest are reported."""
    from tokenflow.tokenizer import tokfile

    fingerprint = tokenizer.fingerprint()
    for job in jobs:
        try:
            tokens = tokfile.load(job.source)
            tokens.check_model(fingerprint, tokenizer.config.codebook_size)
            tokenizer.grid(*tokens.size)
        except (OSError, ValueError) as error:
            report.fail(job.source, error)
        else:
            yield job, tokens


def _alike(read: Iterable[tuple[Job, "Tokens"]], batch_size: int) -> Iterator[Pairs]:
    """Yield neighbours of one size and schedule together, at most `batch_size`."""
    batch: Pairs = []
    for job, tokens in read:
        shape = (tokens.size, tokens.scales)
        first = batch[0][1] if batch else tokens
        if len(batch) == batch_size or (first.size, first.scales) != shape:
            yield batch
            batch = []
        batch.append((job, tokens))
    if batch:
        yield batch


def _draw(tokenizer: "TokenFlowTokenizer", batch: Pairs, report: Report) -> None:
    import torch

    first = batch[0][1]
    pictures = tokenizer.decode(
        torch.stack([tokens.indices for _, tokens in batch]),
        scales=first.scales,
        grid=tokenizer.grid(*first.size),
    )
    for (job, _), picture in zip(batch, pictures, strict=True):
        if write_png(picture, job, report):
            sides = {"width": picture.width, "height": picture.height}
            report.done.append({**job.names(), **sides})
