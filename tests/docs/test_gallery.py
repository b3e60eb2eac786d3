"""The gallery shows what its commands make: its pictures are there, named by the page, small, taken by the script."""

from __future__ import annotations

import re

from PIL import Image

from tests.docs import gallery

OTHERS = {"search-page.png", "review-page.png"}
MOST_BYTES = 1_500_000


def test_every_picture_of_the_page_is_taken_by_a_script_and_the_other_way_round() -> None:
    text = gallery.PAGE.read_text(encoding="utf-8")
    shown = re.findall(r"!\[([^\]]+)\]\(images/([^)]+)\)", text)
    assert {name for _, name in shown} == {*gallery.pictures(), *OTHERS}
    assert all(len(words.split()) > 3 for words, _ in shown), "a picture says what it shows"
    for _, name in shown:
        with Image.open(gallery.IMAGES / name) as picture:
            picture.load()
            assert min(picture.size) > 40
            assert picture.width <= 1440


def test_pictures_of_the_docs_stay_small() -> None:
    assert sum(path.stat().st_size for path in gallery.IMAGES.iterdir()) < MOST_BYTES


def test_the_commands_begin_with_the_run_that_the_others_read() -> None:
    commands = gallery.commands()
    assert commands[0] == "cdkit run quickstart"
    assert all("runs/quickstart" in line or line.startswith("cdkit tokens") for line in commands[1:])
    for start in gallery.TERMINALS:
        assert sum(line.startswith(f"cdkit {start} ") for line in commands) == 1
