"""`tokenflow convert`: a published checkpoint to a folder `from_pretrained` reads."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tokenflow.cli._options import Json, Overwrite, Report

app = typer.Typer()


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="A published .pt file.", metavar="UPSTREAM.PT")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for safetensors and config.")],
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        typer.Option(help="Of the networks on disk; the books stay float32."),
    ] = "float32",
    config: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="A config.json, where the sizes are not those of a published model.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn a published checkpoint into safetensors and a config.

    Nothing in the file is run. A wrong or truncated file is named, with the first
    names that differ, and leaves nothing behind.
    """
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"OUT must be a folder, {out} is a file")
    if (out / "config.json").exists() and not overwrite:
        raise typer.BadParameter(f"{out} holds a model; --overwrite replaces it")

    import torch

    from tokenflow import TokenFlowConfig, TokenFlowTokenizer

    report = Report()
    try:
        sizes = TokenFlowConfig.from_json_file(config) if config else None
        tokenizer = TokenFlowTokenizer.from_upstream(source, config=sizes)
    except (FileNotFoundError, ValueError) as error:
        report.fail(source, error)
    else:
        tokenizer.save_pretrained(out, dtype=getattr(torch, dtype))
        report.done.append(
            {
                "input": str(source),
                "output": str(out),
                "semantic_encoder": tokenizer.config.semantic_encoder["kind"],
                "image_size": tokenizer.config.image_size,
                "parameters": sum(p.numel() for p in tokenizer.parameters()),
                "dtype": dtype,
                "fingerprint": tokenizer.fingerprint(),
            }
        )
    line = (
        "{input} -> {output}  {semantic_encoder}, {image_size} pixels, "
        "{parameters:,} parameters, {dtype}, model {fingerprint}"
    )
    report.finish({}, line, as_json)
