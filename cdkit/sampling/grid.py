"""A contact sheet of samples: one row per prompt, small images enlarged without blur."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cdkit.storage import atomic_path

CELL = 128
LARGEST_ROWS = 32
GAP = 4


def write_grid(paths: Sequence[Path], columns: int, target: Path) -> None:
    """Write a PNG of the images in `paths`, `columns` to a row, at most 32 rows and 16 columns of it."""
    from PIL import Image

    shown = min(columns, 16)
    rows = [paths[start : start + columns][:shown] for start in range(0, len(paths), columns)][:LARGEST_ROWS]
    step = CELL + GAP
    sheet = Image.new("RGB", (shown * step - GAP, len(rows) * step - GAP), "white")
    for top, row in enumerate(rows):
        for left, path in enumerate(row):
            with Image.open(path) as image:
                small = max(image.size) < CELL
                cell = image.convert("RGB").resize(
                    (CELL, CELL), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
                )
            sheet.paste(cell, (left * step, top * step))
    with atomic_path(target) as temporary:
        sheet.save(temporary, format="PNG")
