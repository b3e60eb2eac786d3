"""Sheets: nothing is left out, everything is labelled, and nothing is shown that means nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdkit.pictures import grid
from cdkit.pictures.grid import Block, Cell, contact_block, draw_sheets, write_contact_sheet, write_grid
from cdkit.pictures.regularization_set import SetRow


def colour(number: int) -> tuple[int, int, int]:
    """One of 4,096 colours that no label has: labels are grey."""
    return (16 * (number % 16), 16 * (number // 16 % 16), 255 - number // 256)


def cells(folder: Path, count: int, first: int = 0, size: tuple[int, int] = (8, 8)) -> list[Cell]:
    made = []
    for number in range(first, first + count):
        path = folder / f"{number}.png"
        Image.new("RGB", size, colour(number)).save(path)
        made.append(Cell(path, (f"seed {number - first}",)))
    return made


def colours_of(*sheets: Image.Image) -> set[tuple[int, int, int]]:
    seen: set[tuple[int, int, int]] = set()
    for sheet in sheets:
        found = sheet.getcolors(sheet.width * sheet.height)
        assert found is not None
        seen |= {value for count, value in found if count >= 64 and isinstance(value, tuple)}
    return seen


@pytest.mark.parametrize(("prompts", "seeds"), [(1, 1), (3, 4), (1, 17), (2, 40), (33, 2), (40, 40)])
def test_every_sample_is_on_a_sheet(tmp_path: Path, prompts: int, seeds: int) -> None:
    blocks = [Block(f"prompt {n}", cells(tmp_path, seeds, n * seeds)) for n in range(prompts)]
    write_grid(blocks, tmp_path / "grid.png", columns=seeds)
    sheets = [Image.open(path) for path in (tmp_path / "grid.png", *sorted((tmp_path / "grids").glob("*.png")))]
    assert len(sheets) == (2 if prompts * seeds == 1600 else 1)
    assert all(sheet.width <= 16 * 140 for sheet in sheets)
    assert {colour(number) for number in range(prompts * seeds)} <= colours_of(*sheets)


def test_more_than_one_sheet_shows_goes_on_in_further_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "MOST_HEIGHT", 400)
    blocks = [Block(f"prompt {number}", cells(tmp_path, 9, 9 * number)) for number in range(2)]
    write_grid(blocks, tmp_path / "grid.png", columns=4)
    further = sorted((tmp_path / "grids").iterdir())
    assert [path.name for path in further] == ["grid-2.png", "grid-3.png"]
    sheets = [Image.open(path) for path in (tmp_path / "grid.png", *further)]
    assert all(sheet.height <= 400 for sheet in sheets)
    assert {colour(number) for number in range(18)} <= colours_of(*sheets)


def text_in(sheet: Image.Image, top: int, bottom: int, left: int = 0, right: int | None = None) -> int:
    """Dark pixels in a part of a sheet: what writing leaves."""
    part = np.asarray(sheet.convert("L"))[top:bottom, left : right or sheet.width]
    return int((part < 160).sum())


def test_prompts_and_seeds_stand_at_the_images(tmp_path: Path) -> None:
    white = tmp_path / "white.png"
    Image.new("RGB", (8, 8), "white").save(white)
    block = Block("a photo of a <new1> star", [Cell(white, ("seed 0",)), Cell(white, ("seed 1",)), Cell(white)])
    (sheet,) = draw_sheets([block], 3, 128)
    heading = grid.GAP + grid.HEADING_HEIGHT
    assert text_in(sheet, 0, heading) > 200
    assert text_in(sheet, heading, heading + 128) == 0
    labels = (heading + 128, sheet.height)
    step = 128 + grid.GAP
    assert text_in(sheet, *labels, grid.GAP, step) > 20
    assert text_in(sheet, *labels, grid.GAP + step, 2 * step) > 20
    assert text_in(sheet, *labels, grid.GAP + 2 * step) == 0
    (bare,) = draw_sheets([Block("", [Cell(white)])], 3, 128)
    assert text_in(bare, 0, bare.height) == 0


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of a star " * 40,
        "x" * 2000,
        "one\ntwo\x0cthree\x1b[31m",
        "café naïve",
        "星の写真 " * 30,
        "",
        "é" * 500,
    ],
)
def test_prompts_of_every_kind_stay_inside_the_sheet(tmp_path: Path, prompt: str) -> None:
    (sheet,) = draw_sheets([Block(prompt, cells(tmp_path, 2))], 2, 128)
    assert sheet.width < 600
    assert text_in(sheet, 0, sheet.height, sheet.width - grid.GAP + 1) == 0
    assert colours_of(sheet) >= {colour(0), colour(1)}
    lines = grid._wrapped(prompt, 500)
    assert len(lines) <= grid.HEADING_LINES
    assert all(grid._font(grid.HEADING_SIZE).getlength(line) <= 500 for line in lines)


def test_a_prompt_that_fits_is_whole_and_one_that_does_not_ends_in_dots() -> None:
    words = [f"word{number}" for number in range(40)]
    whole = grid._wrapped(" ".join(words), 800)
    assert " ".join(whole).split() == words
    assert grid._wrapped(" ".join(words), 200)[-1].endswith("…")
    assert grid._wrapped("café", 200) == ["cafe"]


def test_the_shape_of_a_picture_is_kept(tmp_path: Path) -> None:
    (sheet,) = draw_sheets([Block("wide", cells(tmp_path, 1, size=(300, 150)))], 1, 128)
    rows = (np.asarray(sheet) == colour(0)).all(axis=2)
    assert (rows.any(axis=1).sum(), rows.any(axis=0).sum()) == (64, 128)


def set_rows(folder: Path, count: int, source: str) -> list[SetRow]:
    return [
        SetRow(f"{n:06d}", cell.path, f"caption {n}", 1.0, None, 8, 8, "s", "0" * 16, source, "a dog")
        for n, cell in enumerate(cells(folder, count))
    ]


def test_a_drawn_image_has_no_similarity(tmp_path: Path) -> None:
    rows = [*set_rows(tmp_path, 2, "generated"), *set_rows(tmp_path, 1, "pool.parquet")]
    labels = [tuple(cell.labels) for cell in contact_block(rows, "3 of 3: a dog").cells]
    assert labels == [("drawn", "caption 0"), ("drawn", "caption 1"), ("1.000", "caption 0")]


def test_the_contact_sheet_says_what_it_does_not_show(tmp_path: Path) -> None:
    rows = set_rows(tmp_path, 300, "pool.parquet")
    write_contact_sheet(tmp_path / "sheet.png", rows, "300")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert {colour(number) for number in range(300)} <= colours_of(sheet)
    assert contact_block(rows, "300").heading == "300"
    many = contact_block(rows * 4, "1,200")
    assert (many.heading, len(many.cells)) == ("1,200 (the first 960 are shown)", 960)
