"""What commands do with picture files: open and encode them in batches, write them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from tokenflow.cli._options import Report, progress
from tokenflow.cli._paths import Job

if TYPE_CHECKING:
    from PIL import Image

    from tokenflow import Encoded, TokenFlowTokenizer

Sources = Annotated[list[Path], typer.Argument(help="Pictures, and folders of them.")]
Resize = Annotated[
    Literal["crop", "pad", "squash"],
    typer.Option(help="How a picture becomes square: cut, padded, or squashed."),
]


class Batch(NamedTuple):
    """Pictures that could be opened, as the model sees them, and their tokens."""

    jobs: list[Job]
    pictures: list["Image.Image"]
    encoded: "Encoded"


def encoded(
    model: "TokenFlowTokenizer",
    jobs: Sequence[Job],
    report: Report,
    *,
    batch_size: int,
    resize: str,
) -> Iterator[Batch]:
    """Yield the jobs batch by batch, encoded; what cannot be opened is reported."""
    from tokenflow.tokenizer.processing import fit, open_image

    def opened() -> Iterator[list[tuple[Job, "Image.Image"]]]:
        for start in range(0, len(jobs), batch_size):
            batch = []
            for job in jobs[start : start + batch_size]:
                try:
                    picture = open_image(job.source)
                    batch.append((job, fit(picture, model.config.image_size, resize)))
                except (OSError, ValueError) as error:
                    report.fail(job.source, error)
            yield batch

    for batch in progress(opened(), len(jobs), "picture"):
        if batch:
            some, pictures = (list(part) for part in zip(*batch, strict=True))
            yield Batch(some, pictures, model.encode(pictures))


def write_png(picture: "Image.Image", job: Job, report: Report) -> bool:
    """Write a job's result, whole or not at all; say whether that went well."""
    from tokenflow._files import writing

    try:
        with writing(job.target) as beside:
            picture.save(beside, format="PNG")
    except OSError as error:
        report.fail(job.source, error)
        return False
    return True
