"""The labelled row of pictures that `tokenflow demo` writes."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PER_ROW = 10  # at most
MARGIN, LINE = 10, 18  # pixels
PAPER, INK, PALE = "white", "#202428", "#6a7178"


def strip(
    pictures: Sequence[Image.Image],
    labels: Sequence[tuple[str, str]],
    caption: str,
    side: int = 192,
) -> Image.Image:
    """Return pictures beside each other, two lines of text under each, one below all.

    Args:
        pictures: Of one size, each enlarged (or shrunk) to `side` pixels.
        labels: A dark and a pale line for each picture, plain ASCII.
        caption: A pale line at the foot.
        side: Width of a picture in the strip.
    """
    rows = -(-len(pictures) // PER_ROW)
    columns = -(-len(pictures) // rows)
    height = round(side * pictures[0].height / pictures[0].width)
    step_x, step_y = side + MARGIN, height + 2 * LINE + 2 * MARGIN
    width = columns * step_x + MARGIN
    sheet = Image.new("RGB", (width, rows * step_y + LINE + MARGIN // 2), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x = MARGIN + number % columns * step_x
        y = MARGIN + number // columns * step_y
        large = picture.resize((side, height), Image.Resampling.BICUBIC)
        sheet.paste(large, (x, y))
        pen.text((x, y + height + 5), label[0], fill=INK, font=font)
        pen.text((x, y + height + 5 + LINE), label[1], fill=PALE, font=font)
    pen.text((MARGIN, rows * step_y), caption, fill=PALE, font=font)
    return sheet
