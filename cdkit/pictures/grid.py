"""Sheets of small labelled pictures: a block per prompt with its samples by seed, or the images of a set.

Nothing is left out: a block with more pictures than columns goes on in further lines, and a sheet that would be too
high for viewers goes on in further sheets.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cdkit.pictures.picture import open_file, save_png
from cdkit.pictures.regularization_set import GENERATED, SetRow

MOST_COLUMNS = 16
GAP = 6
HEADING_SIZE, LABEL_SIZE = 14, 11
HEADING_HEIGHT, LABEL_HEIGHT = 19, 14
# A longer heading is cut: a prompt of 77 tokens fits where there are a few columns.
HEADING_LINES = 4
# A heading over one picture still wants room for some words.
LEAST_WIDTH = 520
CONTACT_COLUMNS, CONTACT_SIDE = 12, 112
# More would be too many to look at; the sheet says how many there are.
MOST_CONTACTS = 960
# What viewers and browsers still show.
MOST_HEIGHT = 16_000


@dataclass(frozen=True)
class Cell:
    """One picture, and the lines of text under it, each cut to the picture's width."""

    path: Path
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Block:
    """Pictures under a heading."""

    heading: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class _Line:
    """One line of a block's pictures; heading: what stands over it, in lines."""

    heading: Sequence[str]
    cells: Sequence[Cell]

    def height(self, side: int) -> int:
        labels = max((len(cell.labels) for cell in self.cells), default=0)
        pictures = side + labels * LABEL_HEIGHT + GAP if self.cells else 0
        return len(self.heading) * HEADING_HEIGHT + pictures + GAP


def draw_sheets(blocks: Sequence[Block], columns: int, side: int) -> Iterator[Image.Image]:
    """Sheets of `columns` pictures side by side, each in a square of `side` pixels, one after another."""
    columns = max(1, min(columns, MOST_COLUMNS))
    width = max(columns * (side + GAP) + GAP, LEAST_WIDTH)
    sheet: list[_Line] = []
    used = GAP
    for block in blocks:
        heading = _wrapped(block.heading, width - 2 * GAP)
        lines = [block.cells[start : start + columns] for start in range(0, len(block.cells), columns)] or [()]
        for number, cells in enumerate(lines):
            line = _Line(heading if number == 0 else (), cells)
            if sheet and used + line.height(side) > MOST_HEIGHT:
                yield _drawn(sheet, width, side)
                sheet, used = [], GAP
                line = _Line(
                    heading if number == 0 else _wrapped(f"(goes on) {block.heading}", width - 2 * GAP), cells
                )
            sheet.append(line)
            used += line.height(side)
    yield _drawn(sheet, width, side)


def write_grid(blocks: Sequence[Block], target: Path, *, columns: int, side: int = 128) -> None:
    """Write the sheets as PNG: the first as `target`, any further ones into a folder beside it (grid.png, grids/)."""
    for number, sheet in enumerate(draw_sheets(blocks, columns, side), start=1):
        further = target.parent / f"{target.stem}s" / f"{target.stem}-{number}.png"
        save_png(sheet, target if number == 1 else further)


def write_contact_sheet(path: Path, rows: Sequence[SetRow], title: str) -> None:
    """Draw up to 960 images, each with the start of its caption and the caption's similarity to the prompt."""
    save_png(next(draw_sheets([contact_block(rows, title)], CONTACT_COLUMNS, CONTACT_SIDE)), path)


def contact_block(rows: Sequence[SetRow], title: str) -> Block:
    """The images and what is written at them; one that a model drew for its caption has no similarity to show."""
    first = rows[:MOST_CONTACTS]
    cells = [
        Cell(row.path, ("drawn" if row.source == GENERATED else f"{row.similarity:.3f}", row.caption)) for row in first
    ]
    return Block(f"{title} (the first {MOST_CONTACTS} are shown)" if len(first) < len(rows) else title, cells)


def _drawn(lines: Sequence[_Line], width: int, side: int) -> Image.Image:
    sheet = Image.new("RGB", (width, GAP + sum(line.height(side) for line in lines)), "white")
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for line in lines:
        below = top
        for text in line.heading:
            draw.text((GAP, below), text, fill="black", font=_font(HEADING_SIZE))
            below += HEADING_HEIGHT
        for column, cell in enumerate(line.cells):
            left = GAP + column * (side + GAP)
            picture = _small(cell.path, side)
            sheet.paste(picture, (left + (side - picture.width) // 2, below + (side - picture.height) // 2))
            _label(draw, (left, below + side), cell.labels, side)
        top += line.height(side)
    return sheet


def _small(path: Path, side: int) -> Image.Image:
    """A picture that fits a square; one much smaller than it is enlarged without blur."""
    picture = open_file(path, side)
    scale = side / max(picture.size)
    if scale <= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST)


def _label(draw: ImageDraw.ImageDraw, corner: tuple[int, int], labels: Sequence[str], width: int) -> None:
    for number, text in enumerate(labels):
        shade = "black" if number else (90, 90, 90)
        place = (corner[0], corner[1] + number * LABEL_HEIGHT)
        draw.text(place, _cut(text, _font(LABEL_SIZE), width), fill=shade, font=_font(LABEL_SIZE))


def _wrapped(text: str, width: int) -> list[str]:
    """A text in lines of a heading, cut after a few."""
    font = _font(HEADING_SIZE)
    lines: list[str] = []
    words = _drawable(text).split()
    while words and len(lines) < HEADING_LINES - 1:
        taken = 1
        while taken < len(words) and font.getlength(" ".join(words[: taken + 1])) <= width:
            taken += 1
        lines.append(_cut(" ".join(words[:taken]), font, width))
        words = words[taken:]
    return [*lines, _cut(" ".join(words), font, width)] if words else lines


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of a text as fits, with … where something is missing."""
    text = " ".join(_drawable(text).split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _drawable(text: str) -> str:
    """A text in the letters that Pillow's own font has: accents are dropped, others become `?`."""
    plain = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in plain if not unicodedata.combining(letter)).encode("ascii", "replace").decode()


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
