"""Captions: what counts first, what contradicts, and what is damaged."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest

from cdkit.core.errors import InputError
from cdkit.pictures.reading import PictureFolder, read_pictures


def write(root: Path, **files: str) -> PictureFolder:
    """Files by name, `__` for a dot and `_in_` for a slash; empty ones are pictures."""
    for name, content in files.items():
        path = root / name.replace("_in_", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="")
    return read_pictures(root)


def said(found: PictureFolder) -> dict[str, str | None]:
    return {picture.key: picture.caption for picture in found.pictures}


def line(name: str, caption: object, key: str = "text") -> str:
    return json.dumps({"file_name": name, key: caption}) + "\n"


def test_the_nearest_file_counts_and_the_others_are_named(tmp_path: Path) -> None:
    found = write(
        tmp_path,
        **{"a__jpg": "", "b__jpg": "", "c__jpg": "", "d__jpg": "", "e__jpg": ""},
        **{"a__txt": "by text", "a__caption": "by caption", "b__caption": "by caption"},
        metadata__jsonl="".join(line(f"{name}.jpg", "by json") for name in "abc"),
        metadata__csv="file_name,text\n" + "".join(f"{name}.jpg,by csv\n" for name in "abcd"),
        caption__txt="listed\n" * 5,
    )
    captions = ["by text", "by caption", "by json", "by csv", "listed"]
    assert said(found) == dict(zip([f"{name}.jpg" for name in "abcde"], captions, strict=True))
    (note,) = found.notes
    assert "4 pictures have captions that contradict each other" in note
    assert "a.jpg (a.txt, a.caption), b.jpg (b.caption, metadata.jsonl), c.jpg (metadata.jsonl, metadata.csv)" in note
    assert found.left_out == []


def test_the_same_said_twice_is_no_contradiction(tmp_path: Path) -> None:
    again = {"a__caption": "one caption", "metadata__jsonl": line("a.jpg", "")}
    found = write(tmp_path, a__jpg="", a__txt="one\ncaption ", **again)
    assert (said(found), found.notes) == ({"a.jpg": "one caption"}, [])


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    found = write(tmp_path, a__jpg="", b__jpg="", a__txt=" \n", a__caption="yes", b__txt="\ufeff")
    assert said(found) == {"a.jpg": "yes", "b.jpg": None}


def test_a_picture_called_caption_or_images_keeps_its_own_file(tmp_path: Path) -> None:
    found = write(tmp_path, caption__jpg="", images__png="", caption__txt="of one", images__txt="of the other")
    assert said(found) == {"caption.jpg": "of one", "images.png": "of the other"}


def test_two_pictures_of_one_name_share_its_caption(tmp_path: Path) -> None:
    assert said(write(tmp_path, a__jpg="", a__png="", a__txt="x")) == {"a.jpg": "x", "a.png": "x"}


def test_names_are_found_however_they_are_composed(tmp_path: Path) -> None:
    composed = "caf\u00e9.jpg"
    (tmp_path / unicodedata.normalize("NFD", composed)).write_bytes(b"")
    (tmp_path / "metadata.jsonl").write_text(line(composed, "coffee"))
    assert list(said(read_pictures(tmp_path)).values()) == ["coffee"]


def test_captions_of_pictures_that_are_not_there_are_named(tmp_path: Path) -> None:
    found = write(tmp_path, a__jpg="", metadata__jsonl=line("a.jpg", "a") + line("../b.jpg", "b") + line("c.jpg", "c"))
    assert found.missing == 2
    assert "captions of pictures that are not there: ../b.jpg, c.jpg" in found.notes[0]


def test_a_file_about_a_subfolder_reaches_no_other(tmp_path: Path) -> None:
    found = write(tmp_path, a__jpg="", sub_in_a__jpg="", sub_in_metadata__jsonl=line("a.jpg", "below"))
    assert said(found) == {"a.jpg": None, "sub/a.jpg": "below"}


def test_columns_that_say_nothing_or_two_things_are_named(tmp_path: Path) -> None:
    both = json.dumps({"file_name": "a.jpg", "caption": "two", "text": "one"})
    found = write(tmp_path, a__jpg="", metadata__jsonl=both)
    assert said(found) == {"a.jpg": "one"}
    assert "text and caption differ in 1 rows" in found.notes[0]
    found = write(tmp_path, metadata__jsonl=line("a.jpg", "x", key="label"))
    assert said(found) == {"a.jpg": None}
    assert "neither text nor caption" in found.notes[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (line("a.jpg", "x") + "{", "line 2"),
        (line("a.jpg", "x") + "\n[]", "line 3: no JSON object"),
        ('{"text": "x"}', "line 1: no file_name"),
        ('{"file_name": 7, "text": "x"}', "line 1: no file_name"),
        (line("a.jpg", 7), "line 1: the caption is no text"),
        (line("a.jpg", ["x", "y"]), "the caption is no text"),
        ('{"file_name": "a.jpg", "Text": "x", "text": "y"}', "have the same name"),
        ("[" * 100_000, "line 1"),
    ],
)
def test_damaged_metadata_is_named_with_its_line(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        write(tmp_path, a__jpg="", metadata__jsonl=content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name,text\na.jpg,x\n", "no column file_name"),
        ("", "no column file_name"),
        ("file_name,text,TEXT\na.jpg,x,y\n", "have the same name"),
        ('file_name,text\na.jpg,"x\nb.jpg,y\n', "line 3"),
        ("file_name,text\n,x\n", "line 2: no file_name"),
        (f"file_name,text\na.jpg,{'x' * 200_000}\n", "line 2"),
    ],
)
def test_damaged_tables_are_named_with_their_line(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        write(tmp_path, a__jpg="", metadata__csv=content)


def test_a_short_row_has_no_caption(tmp_path: Path) -> None:
    assert said(write(tmp_path, a__jpg="", metadata__csv="file_name,text\na.jpg\n\n")) == {"a.jpg": None}


def test_lists_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 lines for 2 images"):
        write(tmp_path, images_in_a__jpg="", images_in_b__jpg="", caption__txt="x\ny\nz\n")
    found = write(tmp_path, caption__txt="x\ny\n\n\n", images__txt="images/b.jpg\nC:\\work\\images\\a.jpg\n\n")
    assert said(found) == {"images/a.jpg": "y", "images/b.jpg": "x"}
    found = write(tmp_path, images__txt="images/b.jpg\nimages/z.jpg\n")
    assert said(found) == {"images/a.jpg": None, "images/b.jpg": "x"}
    assert found.missing == 1


def test_a_text_that_is_none_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "a.txt").write_bytes("ä".encode("utf-16"))
    with pytest.raises(InputError, match=r"a\.txt cannot be read") as caught:
        read_pictures(tmp_path)
    assert "UTF-8" in caught.value.hint
    (tmp_path / "a.txt").write_bytes(b"word " * 300_000)
    with pytest.raises(InputError, match="too long for a caption"):
        read_pictures(tmp_path)


def test_half_a_character_does_not_reach_a_caption(tmp_path: Path) -> None:
    (caption,) = said(write(tmp_path, a__jpg="", metadata__jsonl=line("a.jpg", "star \ud800 light"))).values()
    assert caption == "star ? light"


def test_a_name_as_long_as_a_name_may_be(tmp_path: Path) -> None:
    name = "n" * 251
    (tmp_path / f"{name}.jpg").write_bytes(b"")
    (tmp_path / f"{name}.txt").write_text("found")
    assert list(said(read_pictures(tmp_path)).values()) == ["found"]
    assert os.path.isfile(tmp_path / f"{name}.txt")


def test_other_files_are_named_and_captions_are_not(tmp_path: Path) -> None:
    found = write(tmp_path, a__jpg="", a__txt="x", b__txt="of nothing", notes__pdf="", README__md="")
    assert [str(entry) for entry in found.left_out] == ["README.md", "b.txt", "notes.pdf"]
    assert found.left_out_notes() == [f"{tmp_path}: left out, not images: README.md, b.txt, notes.pdf."]
