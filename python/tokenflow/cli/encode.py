"""`tokenflow encode`: pictures to `.tok` files."""

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
)
from tokenflow.cli._paths import plan
from tokenflow.cli._pictures import Resize, Sources, encoded

app = typer.Typer()


@app.command()
def encode(
    sources: Sources,
    out: Out,
    model: Model = "mini",
    batch_size: BatchSize = 16,
    resize: Resize = "crop",
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn pictures into tokens: one .tok file a picture."""
    from tokenflow.tokenizer import tokfile

    jobs = plan(
        sources,
        out,
        suffixes=PICTURES,
        suffix=tokfile.SUFFIX,
        overwrite=overwrite,
    )
    tokenizer, report = load_model(model, device), Report()
    fingerprint = tokenizer.fingerprint()
    side = tokenizer.config.image_size
    for batch in encoded(tokenizer, jobs, report, batch_size=batch_size, resize=resize):
        for job, indices in zip(batch.jobs, batch.encoded.indices, strict=True):
            tokens = tokfile.Tokens(
                indices=indices,
                scales=batch.encoded.scales,
                codebook_size=tokenizer.config.codebook_size,
                fingerprint=fingerprint,
                size=(side, side),
            )
            try:
                tokfile.save(job.target, tokens)
            except OSError as error:
                report.fail(job.source, error)
                continue
            report.done.append(
                {
                    **job.names(),
                    "tokens": len(indices),
                    "bytes": job.target.stat().st_size,
                }
            )
    report.finish(
        {"model": model, "fingerprint": fingerprint},
        "{input} -> {output}  {tokens} tokens, {bytes} bytes",
        as_json,
    )
