"""Pictures in memory become folders named by their content."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cdkit.api.places import photos_folder
from cdkit.core.errors import ConfigError, InputError
from cdkit.pictures.reading import read_pictures


def _photos(*colours: str) -> list[Image.Image]:
    return [Image.new("RGB", (8, 6), colour) for colour in colours]


def test_the_same_pictures_are_the_same_folder() -> None:
    first = photos_folder(_photos("red", "blue"))
    assert photos_folder(_photos("red", "blue")) == first
    assert photos_folder(_photos("blue", "red")) != first
    opened = [picture.open() for picture in read_pictures(first).pictures]
    assert [picture.getpixel((0, 0)) for picture in opened] == [(255, 0, 0), (0, 0, 255)]


def test_files_keep_their_bytes_and_their_captions(tmp_path: Path) -> None:
    for name, colour in (("b.png", "red"), ("a.jpg", "blue")):
        _photos(colour)[0].save(tmp_path / name)
    (tmp_path / "b.txt").write_text("a red card")
    folder = Path(photos_folder([tmp_path / "b.png", str(tmp_path / "a.jpg")]))
    assert sorted(path.name for path in folder.iterdir()) == ["000.png", "000.txt", "001.jpg"]
    assert (folder / "000.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert [picture.caption for picture in read_pictures(folder).pictures] == ["a red card", None]


def test_a_turned_photo_is_upright_and_other_colours_are_kept() -> None:
    turned = Image.new("CMYK", (8, 6))
    turned.getexif()[0x0112] = 6
    (picture,) = read_pictures(photos_folder([turned])).pictures
    assert picture.open().size == (6, 8)


def test_a_folder_stays_what_it_is(tmp_path: Path) -> None:
    assert photos_folder(tmp_path) == str(tmp_path)
    assert photos_folder("embedded:striped-star") == "embedded:striped-star"


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png is no file"):
        photos_folder([tmp_path / "gone.png"])
    with pytest.raises(ConfigError, match="int is no picture"):
        photos_folder([3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="int is no list of photos"):
        photos_folder(3)  # type: ignore[arg-type]
