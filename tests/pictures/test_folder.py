"""The walk: every picture of a folder in one order, and whatever else is there by its name."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from cdkit.core.errors import InputError
from cdkit.core.formatting import printable
from cdkit.pictures.folder import FORMATS, SUFFIXES, is_of_another_kind, list_folder, picture_format, shown
from cdkit.pictures.picture import FileContent
from tests.pictures.test_decoding import ramp, saved


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_pictures_of_all_folders_stand_in_the_order_of_their_paths(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a/z.png", "a/b/c.webp", "a.png", "10.avif", "9.jfif", "notes.pdf", "a/z.txt")
    listing = list_folder(tmp_path)
    assert listing.pictures == ["10.avif", "9.jfif", "a/b/c.webp", "a/z.png", "a.png", "b.JPG"]
    paths = [Path(name) for name in listing.pictures]
    assert paths == sorted(paths)
    assert listing.others == ["a/z.txt", "notes.pdf"]
    assert listing.left_out == []


def test_what_is_hidden_is_no_part_of_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, ".a.jpg", "._b.jpg", ".cache/c.jpg", "__MACOSX/d.jpg", "@eaDir/e.jpg/thumb.jpg", ".DS_Store")
    listing = list_folder(tmp_path)
    assert (listing.pictures, listing.others, listing.left_out) == ([], [], [])


def test_what_is_no_file_is_left_out_by_name(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.jpg")
    touch(tmp_path / "outside", "b.jpg", "c.jpg")
    os.mkfifo(tmp_path / "in" / "pipe.jpg")
    (tmp_path / "in" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "in" / "circle.png").symlink_to("circle.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "outside")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "kept.jpg").symlink_to(tmp_path / "outside" / "b.jpg")
    (tmp_path / "in" / "like.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "in" / "socket.gif"))
        listing = list_folder(tmp_path / "in")
    assert listing.pictures == ["a.jpg", "kept.jpg"]
    assert [str(entry) for entry in listing.left_out] == [
        "again (a link to a folder)",
        "circle.png (no file)",
        "gone.png (no file)",
        "linked (a link to a folder)",
        "pipe.jpg (no file)",
        "socket.gif (no file)",
    ]


def test_a_pipe_in_place_of_a_file_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="no regular file"):
        FileContent(tmp_path / "a.jpg").read()
    with pytest.raises(InputError, match="no regular file"):
        FileContent(Path("/dev/zero")).read_at_most(10)


NAMES = [b"\xff\xfe.jpg", b"two\nlines\x1b[2J.jpg", b"n" * 251 + b".jpg", "é 星.jpg".encode()]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_listed_and_can_be_shown(tmp_path: Path, name: bytes) -> None:
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as handle:
        handle.write(saved(ramp(), "PNG"))
    (found,) = list_folder(tmp_path).pictures
    assert os.fsencode(found) == name
    assert FileContent(tmp_path / found).read() == saved(ramp(), "PNG")
    assert printable(found).encode().isascii() or "星" in printable(found)
    assert printable(found).isprintable()


def test_paths_too_long_for_the_system_are_an_input_error(tmp_path: Path) -> None:
    here = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(20):
            os.mkdir("n" * 250)
            os.chdir("n" * 250)
        with pytest.raises(InputError, match="File name too long"):
            list_folder(tmp_path)
    finally:
        os.chdir(here)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(InputError, match="closed cannot be read"):
        list_folder(tmp_path)


def test_no_folder_is_an_input_error(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    for path in (tmp_path / "none", tmp_path / "a.jpg"):
        with pytest.raises(InputError, match="is no folder"):
            list_folder(path)


def test_many_names_are_cut() -> None:
    assert shown([str(number) for number in range(9)]) == "0, 1, 2, 3, 4 and 4 more"


def test_every_suffix_has_a_decoder_and_every_format_a_suffix() -> None:
    Image.init()
    extensions = {suffix: kind for suffix, kind in Image.registered_extensions().items() if suffix in SUFFIXES}
    assert {kind.replace("MPO", "JPEG") for kind in extensions.values()} == set(FORMATS)
    assert set(extensions) == SUFFIXES


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_is_told_by_its_start_as_pillow_tells_it(kind: str) -> None:
    content = saved(ramp(), kind)
    assert picture_format(content[:64]) == kind
    assert not is_of_another_kind(content[:64])
    accept = Image.OPEN[kind][1]
    assert accept is not None
    assert accept(content[:16])


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "IM", "XBM"])
def test_other_formats_of_pillow_are_none_of_ours(kind: str) -> None:
    assert picture_format(saved(ramp().convert("1") if kind == "XBM" else ramp(), kind)[:64]) is None
