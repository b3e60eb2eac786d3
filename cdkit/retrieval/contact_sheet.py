"""The contact sheet: the accepted images of a set, in their order, on one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.retrieval.regularization_set import SetRow
from cdkit.storage import atomic_path

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

SIDE, MARGIN, TEXT_HEIGHT = 112, 6, 28
COLUMNS = 12
# More would be too small to look at; the sheet says how many there are.
MOST = 240


def write_contact_sheet(path: Path, rows: Sequence[SetRow], title: str) -> None:
    """Draw up to 240 images with their similarity and the start of their caption under each."""
    from PIL import Image, ImageDraw, ImageFont

    shown = rows[:MOST]
    lines = -(-len(shown) // COLUMNS)
    width = COLUMNS * (SIDE + MARGIN) + MARGIN
    height = TEXT_HEIGHT + lines * (SIDE + TEXT_HEIGHT + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    draw.text((MARGIN, MARGIN), title, fill="black", font=ImageFont.load_default(size=14))
    for number, row in enumerate(shown):
        line, column = divmod(number, COLUMNS)
        left = MARGIN + column * (SIDE + MARGIN)
        top = TEXT_HEIGHT + MARGIN + line * (SIDE + TEXT_HEIGHT + MARGIN)
        with Image.open(row.path) as image:
            image.draft("RGB", (SIDE, SIDE))
            image.thumbnail((SIDE, SIDE))
            sheet.paste(image, (left + (SIDE - image.width) // 2, top + (SIDE - image.height) // 2))
        _caption(draw, (left, top + SIDE), row, font)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _caption(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    row: SetRow,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Similarity on one line, as much of the caption as fits on the next."""
    # What the font has no letters for would be boxes.
    caption = row.caption.encode("ascii", "replace").decode()
    while caption and draw.textlength(caption, font=font) > SIDE:
        caption = caption[:-1]
    draw.text(corner, f"{row.similarity:.3f}", fill="gray", font=font)
    draw.text((corner[0], corner[1] + 13), caption, fill="black", font=font)
