"""The contact sheet: the accepted images of a set, in their order, on one picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from cdkit.pictures.grid import Block, Cell, draw_sheets
from cdkit.pictures.regularization_set import GENERATED, SetRow
from cdkit.storage import atomic_path

SIDE, COLUMNS = 112, 12
# More would be too many to look at; the sheet says how many there are.
MOST = 960


def write_contact_sheet(path: Path, rows: Sequence[SetRow], title: str) -> None:
    """Draw up to 960 images, each with the start of its caption and the caption's similarity to the prompt."""
    for sheet in islice(draw_sheets([contact_block(rows, title)], COLUMNS, SIDE), 1):
        with atomic_path(path) as temporary:
            sheet.save(temporary, format="PNG")


def contact_block(rows: Sequence[SetRow], title: str) -> Block:
    """The images and what is written at them; one that a model drew for its caption has no similarity to show."""
    shown = rows[:MOST]
    cells = [
        Cell(row.path, ("drawn" if row.source == GENERATED else f"{row.similarity:.3f}", row.caption)) for row in shown
    ]
    return Block(f"{title} (the first {MOST} are shown)" if len(shown) < len(rows) else title, cells)
