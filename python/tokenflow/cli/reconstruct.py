"""`tokenflow reconstruct`: pictures through the tokens and back, with PSNR."""

import math
from typing import Any

import typer

from tokenflow._files import PICTURES
from tokenflow.cli._options import (
    BatchSize,
    Device,
    Json,
    Model,
    Out,
    Overwrite,
    Report,
    load_model,
    note,
)
from tokenflow.cli._paths import plan
from tokenflow.cli._pictures import Batch, Resize, Sources, encoded, write_png

app = typer.Typer()


@app.command()
def reconstruct(
    sources: Sources,
    out: Out,
    model: Model = "mini",
    batch_size: BatchSize = 16,
    resize: Resize = "crop",
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Redraw pictures from their tokens: one PNG each, and how close it comes.

    PSNR (in dB, more is closer) compares with the picture as the model sees it, cut
    and shrunk to its size.
    """
    jobs = plan(sources, out, suffixes=PICTURES, suffix=".png", overwrite=overwrite)
    tokenizer, report = load_model(model, device), Report()
    for batch in encoded(tokenizer, jobs, report, batch_size=batch_size, resize=resize):
        _redraw(tokenizer, batch, report)
    values = [entry["psnr"] for entry in report.done]
    mean = math.fsum(values) / len(values) if values else None
    if mean is not None:
        note(f"{len(values)} pictures, mean PSNR {mean:.2f} dB")
    summary = {"model": model, "mean_psnr": mean}
    report.finish(summary, "{input} -> {output}  {psnr:.2f} dB", as_json)


def _redraw(tokenizer: Any, batch: Batch, report: Report) -> None:
    drawn = tokenizer.decode(batch.encoded)
    tokens = batch.encoded.indices.shape[1]
    for job, original, picture in zip(batch.jobs, batch.pictures, drawn, strict=True):
        if write_png(picture, job, report):
            close = psnr(original, picture)
            report.done.append({**job.names(), "tokens": tokens, "psnr": close})


def psnr(original: Any, picture: Any) -> float:
    """Return the PSNR of two pictures of one size in dB."""
    import numpy as np
    import torch

    from tokenflow.evaluation import metrics

    one, other = (
        torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        for image in (original, picture)
    )
    return metrics.psnr(one, other).item()
