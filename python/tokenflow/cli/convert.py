"""`tokenflow convert`: a published checkpoint to a folder `from_pretrained` reads."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tokenflow.cli._options import Json, Overwrite, Report, note

if TYPE_CHECKING:
    import torch

app = typer.Typer()


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A published .pt file, or a folder of published weights.",
            metavar="UPSTREAM",
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder for safetensors and config.")],
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(
            help="Of the networks on disk; the books stay float32. float32 if not "
            "given; a language model stays as it is."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="A config.json, where the sizes are not those of a published model.",
        ),
    ] = None,
    image_tokenizer: Annotated[
        str | None,
        typer.Option(
            help="For a generation or understanding model: its tokenizer, a published "
            ".pt file or what --model takes elsewhere."
        ),
    ] = None,
    language_model: Annotated[
        str | None,
        typer.Option(
            help="For mm_projector.bin: the language model it was trained for, a "
            "folder or hub id of transformers."
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn a published checkpoint into safetensors and a config.

    What it holds is told by its names. Nothing in the file is run. A wrong or
    truncated file is named, with the first names that differ, and leaves nothing
    behind.
    """
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"OUT must be a folder, {out} is a file")
    if (out / "config.json").exists() and not overwrite:
        raise typer.BadParameter(f"{out} holds a model; --overwrite replaces it")

    import torch

    from tokenflow import checkpoint

    report, line = Report(), ""
    try:
        stored = getattr(torch, dtype) if dtype else None
        if language_model is not None or checkpoint.is_llava(source):
            words = config, stored, image_tokenizer, language_model
            facts, line = _understanding(source, out, *words)
        else:
            dtype, stored = dtype or "float32", stored or torch.float32
            names = checkpoint.published_names(source)
            work = _generation if checkpoint.is_generation(names) else _tokenizer
            facts, line = work(source, out, config, stored, image_tokenizer)
    except (FileNotFoundError, ValueError) as error:
        report.fail(source, error)
    else:
        where = {"input": str(source), "output": str(out)}
        report.done.append({"dtype": dtype, **where, **facts})
    report.finish({}, "{input} -> {output}  " + line, as_json)


def _tokenizer(
    source: Path, out: Path, config: Path | None, dtype: "torch.dtype", _: str | None
) -> tuple[dict[str, Any], str]:
    """Convert a tokenizer; return what there is to tell, and how."""
    from tokenflow import TokenFlowConfig, TokenFlowTokenizer

    sizes = TokenFlowConfig.from_json_file(config) if config else None
    tokenizer = TokenFlowTokenizer.from_upstream(source, config=sizes)
    tokenizer.save_pretrained(out, dtype=dtype)
    facts = {
        "semantic_encoder": tokenizer.config.semantic_encoder["kind"],
        "image_size": tokenizer.config.image_size,
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "fingerprint": tokenizer.fingerprint(),
    }
    return facts, (
        "{semantic_encoder}, {image_size} pixels, {parameters:,} parameters, {dtype}, "
        "model {fingerprint}"
    )


def _generation(
    source: Path,
    out: Path,
    config: Path | None,
    dtype: "torch.dtype",
    image_tokenizer: str | None,
) -> tuple[dict[str, Any], str]:
    """Convert a generation model; return what there is to tell, and how."""
    from tokenflow import TokenFlowForGeneration, TokenFlowGenerationConfig

    sizes = TokenFlowGenerationConfig.from_json_file(config) if config else None
    model = TokenFlowForGeneration.from_upstream(source, config=sizes)
    if image_tokenizer is not None:
        model.attach(_image_tokenizer(image_tokenizer))
    else:
        note("no image tokenizer goes with it; --image-tokenizer names one")
    model.to(dtype).save_pretrained(out)
    facts = {
        "kind": "generation",
        "image_tokens": model.config.num_tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "fingerprint": model.config.fingerprint,
    }
    return facts, (
        "generation, {image_tokens} image tokens, {parameters:,} parameters, {dtype}"
    )


def _understanding(
    source: Path,
    out: Path,
    config: Path | None,
    dtype: "torch.dtype | None",
    image_tokenizer: str | None,
    language_model: str | None,
) -> tuple[dict[str, Any], str]:
    """Convert an understanding model; return what there is to tell, and how."""
    from tokenflow import TokenFlowConfig, TokenFlowForUnderstanding

    sizes = TokenFlowConfig.from_json_file(config) if config else None
    model = TokenFlowForUnderstanding.from_upstream(
        source,
        None if image_tokenizer is None else _image_tokenizer(image_tokenizer, sizes),
        language_model=language_model,
        tokenizer_config=sizes,
    )
    if dtype is not None:
        model.to(dtype)
    if not model.has_processor:
        note("no text tokenizer goes with it; the folder has none")
    model.save_pretrained(out)
    facts = {
        "kind": "understanding",
        "language_model": model.config.text_config.model_type,
        "image_tokens": model.config.image_tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "fingerprint": model.tokenizer.fingerprint(),
        "dtype": str(model.projector[0].weight.dtype).removeprefix("torch."),
    }
    return facts, (
        "understanding, {language_model}, {image_tokens} image tokens, "
        "{parameters:,} parameters, {dtype}"
    )


def _image_tokenizer(name: str, config: Any = None) -> Any:
    """Return a tokenizer: of a published file, or whatever else names one."""
    from tokenflow import TokenFlowTokenizer

    if Path(name).is_file():
        return TokenFlowTokenizer.from_upstream(name, config=config)
    return TokenFlowTokenizer.from_pretrained(name)
