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
    """Draw up to 960 images, under each the start of its caption and the caption's similarity to the prompt.

    An image that a model drew for its caption has no similarity to show.
    """
    shown = rows[:MOST]
    title = f"{title} (the first {MOST} are shown)" if len(shown) < len(rows) else title
    cells = [Cell(row.path, (_similarity(row), row.caption)) for row in shown]
    for sheet in islice(draw_sheets([Block(title, cells)], COLUMNS, SIDE), 1):
        with atomic_path(path) as temporary:
            sheet.save(temporary, format="PNG")


def _similarity(row: SetRow) -> str:
    return "drawn" if row.source == GENERATED else f"{row.similarity:.3f}"
