"""Sources of pictures: whatever a user may give is found, or refused for what it is."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.manifest import STARTED_NAME, Manifest
from cdkit.embedded import concept_photos
from cdkit.pictures.reading import read_pictures
from tests.pictures.test_regularization_set import make_set
from tests.support.photo_pool import picture


def test_embedded_concepts_are_their_photos() -> None:
    found = read_pictures("embedded:striped-star")
    for read, photo in zip(found.pictures, concept_photos("striped-star"), strict=True):
        assert (np.asarray(read.open()) == np.asarray(photo)).all()
    with pytest.raises(ConfigError, match="no embedded concept"):
        read_pictures("embedded:nothing")


def test_a_set_is_read_with_its_captions_from_either_folder(tmp_path: Path) -> None:
    rows = make_set(tmp_path / "set", 3)
    (tmp_path / "set" / "contact_sheet.png").write_bytes(picture(9, "PNG"))
    for source in (tmp_path / "set", tmp_path / "set" / "images"):
        found = read_pictures(source)
        assert [(entry.key, entry.caption, entry.url) for entry in found.pictures] == [
            (row.key, row.caption, row.url) for row in rows
        ]
    (tmp_path / "set" / "manifest.json").unlink()
    assert len(read_pictures(tmp_path / "set").pictures) == 3, "a set that was passed on without its manifest"


@pytest.mark.parametrize("inside", ["images", "building/drawn", "building/curated"])
def test_what_an_interrupted_stage_left_is_no_set(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside).mkdir(parents=True)
    (tmp_path / inside / "000000.png").write_bytes(picture(0, "PNG"))
    Manifest("class-images", 1, "f" * 64, {}, {}).write(tmp_path, STARTED_NAME)
    with pytest.raises(InputError, match="not finished") as caught:
        read_pictures(tmp_path)
    assert "again" in caught.value.hint


def test_samples_are_read_without_their_grid(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("images/0000-0.png", "images/0000-1.png", "grid.png"):
        (tmp_path / name).write_bytes(picture(1, "PNG"))
    assert len(read_pictures(tmp_path).pictures) == 3
    (tmp_path / "samples.parquet").write_bytes(b"")
    assert [entry.key for entry in read_pictures(tmp_path).pictures] == ["0000-0.png", "0000-1.png"]


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(1))
    (found,) = read_pictures(tmp_path / "a.jpg").pictures
    assert found.open().size == (200, 160)


def test_no_source_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_pictures(tmp_path / "none")
    with pytest.raises(InputError, match="neither a folder nor a file"):
        read_pictures("/dev/null")
    assert read_pictures(tmp_path).pictures == []


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_tar_files_of_other_programs_are_read(tmp_path: Path) -> None:
    facts = json.dumps({"caption": "by json", "url": "http://a.test/1"}).encode()
    write_tar(
        tmp_path / "shard-0.tar",
        {
            **{"cats/1.jpg": picture(1), "cats/1.json": facts, "dogs/1.seg.png": picture(2, "PNG")},
            **{"dogs/1.txt": b"by\ntext", "3.webp": picture(3, "WEBP"), "3.json": b"[" * 99_999, "notes.md": b"x"},
        },
    )
    found = read_pictures(tmp_path)
    assert [(entry.key, entry.caption, entry.url) for entry in found.pictures] == [
        ("shard-0/cats/1", "by json", "http://a.test/1"),
        ("shard-0/dogs/1", "by text", None),
        ("shard-0/3", None, None),
    ]
    assert [entry.open().size for entry in found.pictures] == [(200, 160)] * 3


def test_a_tar_that_is_packed_or_cut_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.jpg": picture(1)}, "w:gz")
    with pytest.raises(InputError, match=r"a\.tar is damaged"):
        read_pictures(tmp_path)
    write_tar(tmp_path / "a.tar", {"1.jpg": picture(1), "2.jpg": picture(2)})
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:3000])
    with pytest.raises(InputError, match=r"a\.tar is damaged"):
        read_pictures(tmp_path)
