"""Images at hand: img2dataset's layouts joined by key, folders with captions, and their join with candidates."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.text import caption_id
from cdkit.pictures.reading import PictureFolder
from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.images import local_candidates, match_candidates, read_images
from tests.support.hashing_encoder import HashingEncoder

# Completion order, as img2dataset writes it; the third URL failed.
ROWS: list[dict[str, Any]] = [
    {"key": "000000002", "url": "http://a.test/2", "caption": "a cat", "status": "success"},
    {"key": "000000000", "url": "http://a.test/0", "caption": "a dog", "status": "success"},
    {"key": "000000001", "url": "http://a.test/1", "caption": "dead", "status": "failed_to_download"},
]


def picture(key: str) -> bytes:
    return b"picture " + key.encode()


def write_files(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "00000.parquet")
    (folder / "00000").mkdir()
    for row in ROWS[:2]:
        (folder / "00000" / f"{row['key']}.jpg").write_bytes(picture(row["key"]))
        (folder / "00000" / f"{row['key']}.json").write_text(json.dumps(row))


def write_webdataset(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "00000.parquet")
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for row in ROWS[:2]:
            for name, content in (("txt", row["caption"].encode()), ("jpg", picture(row["key"]))):
                member = tarfile.TarInfo(f"{row['key']}.{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_parquet(folder: Path) -> None:
    rows = [row | {"jpg": picture(row["key"]) if row["status"] == "success" else None} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet", row_group_size=1)


LAYOUTS = {"files": write_files, "webdataset": write_webdataset, "parquet": write_parquet}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_img2dataset_output_is_joined_by_key(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path)
    found = read_images(tmp_path)
    assert found.layout == layout
    assert found.rejected == {"failed_to_download": 1}
    images = {image.url: image for image in found.pictures}
    assert {url: image.caption for url, image in images.items()} == {
        "http://a.test/2": "a cat",
        "http://a.test/0": "a dog",
    }
    for image in found.pictures:
        # Read in another process, as curation does.
        content = pickle.loads(pickle.dumps(image.content))
        assert content.read() == picture(image.key)


def test_only_what_candidates_may_use_is_kept(tmp_path: Path) -> None:
    write_webdataset(tmp_path)
    assert [image.key for image in read_images(tmp_path, [wanted(0, "x", "http://A.test/0")]).pictures] == [
        "000000000"
    ]
    assert [image.key for image in read_images(tmp_path, [wanted(0, "a cat", None)]).pictures] == ["000000002"]
    assert read_images(tmp_path, [wanted(0, "a cat", "http://b.test/")]).pictures == []


def test_images_that_are_missing_or_unknown_are_counted(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "00000" / "000000002.jpg").unlink()
    (tmp_path / "00000" / "000000009.jpg").write_bytes(b"x")
    found = read_images(tmp_path)
    assert [image.key for image in found.pictures] == ["000000000"]
    assert found.rejected == {"failed_to_download": 1, "missing": 1, "no_row": 1}


@pytest.mark.parametrize("name", ["00000.parquet", "00000.tar"])
def test_a_damaged_shard_is_named(tmp_path: Path, name: str) -> None:
    write_webdataset(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(b"\x07" * 600 + content[600:700])
    with pytest.raises(InputError, match=name):
        read_images(tmp_path)


def write_pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(name))


def captions_of(found: PictureFolder) -> dict[str, str | None]:
    return {image.key: image.caption for image in found.pictures}


def test_captions_in_text_files_beside_the_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.jpg", "deep/b.PNG", "none.webp", ".hidden.jpg")
    (tmp_path / "a.txt").write_text("\ufeffA dog\non the grass\n", encoding="utf-8")
    (tmp_path / "deep" / "b.txt").write_text("a cat")
    found = read_images(tmp_path)
    assert captions_of(found) == {"a.jpg": "A dog on the grass", "deep/b.PNG": "a cat"}
    assert found.rejected == {"no_caption": 1}
    assert found.pictures[0].content.read() == picture("a.jpg")


def test_captions_in_hugging_face_metadata(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    lines = [
        {"file_name": "a.jpg", "text": "a dog"},
        {"file_name": "./b.jpg", "caption": "a cat"},
        {"file_name": "../x.jpg", "text": "out"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    found = read_images(tmp_path)
    assert captions_of(found) == {"a.jpg": "a dog", "b.jpg": "a cat"}
    assert found.rejected == {"no_caption": 1, "missing": 1}


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "a dog"}'])
def test_broken_metadata_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    write_pictures(tmp_path, "a.jpg")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "a dog"}\n' + line)
    with pytest.raises(InputError, match="line 2"):
        read_images(tmp_path)


def test_the_layout_of_adobes_and_diffusers_scripts(tmp_path: Path) -> None:
    write_pictures(tmp_path, "images/10.jpg", "images/9.jpg")
    (tmp_path / "images.txt").write_text("/elsewhere/cat/images/9.jpg\n./images/10.jpg\n")
    (tmp_path / "caption.txt").write_text("nine\nten\n")
    (tmp_path / "urls.txt").write_text("http://a.test/9\nhttp://a.test/10\n")
    found = read_images(tmp_path)
    assert captions_of(found) == {"images/9.jpg": "nine", "images/10.jpg": "ten"}
    assert {image.key: image.url for image in found.pictures}["images/9.jpg"] == "http://a.test/9"
    (tmp_path / "images.txt").unlink()
    (tmp_path / "urls.txt").unlink()
    assert captions_of(read_images(tmp_path)) == {"images/10.jpg": "nine", "images/9.jpg": "ten"}
    (tmp_path / "caption.txt").write_text("only one\n")
    with pytest.raises(InputError, match="1 lines for 2 images"):
        read_images(tmp_path)


def test_a_folder_without_images_or_captions_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        read_images(tmp_path / "absent")
    with pytest.raises(InputError, match="it holds none"):
        read_images(tmp_path)
    write_pictures(tmp_path, "a.jpg")
    with pytest.raises(InputError, match="1 no_caption"):
        read_images(tmp_path)


def wanted(number: int, caption: str, url: str | None) -> Candidate:
    return Candidate("q", caption_id(caption), caption, 1.0 - number / 100, url)


def test_candidates_find_their_images_by_url_else_by_caption(tmp_path: Path) -> None:
    write_files(tmp_path)
    stored = read_images(tmp_path).pictures
    candidates = [
        wanted(0, "another caption of the same picture", "HTTP://A.test:80/0#top"),
        wanted(1, "a cat", "http://gone.test/"),
        wanted(2, "a cat", None),
        wanted(3, "a cat", None),
    ]
    found = match_candidates(candidates, stored)
    assert {place: image.content.read() for place, image in found.items()} == {
        0: picture("000000000"),
        2: picture("000000002"),
    }


def test_a_folder_is_a_source_of_candidates_without_an_index(tmp_path: Path) -> None:
    encoder = HashingEncoder(256)
    captions = {"1.jpg": "A red DOG", "2.jpg": "a dog", "3.jpg": "the blue cat", "4.jpg": "a dog", "5.jpg": "my vase"}
    write_pictures(tmp_path, *captions)
    for name, caption in captions.items():
        (tmp_path / name).with_suffix(".txt").write_text(caption)
    stored = read_images(tmp_path).pictures
    found, images = local_candidates(stored, ["a dog", "a red dog"], encoder)
    shown = [(candidate.source, candidate.query, candidate.similarity) for candidate in found.candidates]
    # Equal similarities stand by caption id; the second picture of a caption is a spare one.
    first = sorted(
        [("2.jpg", "a dog", 1.0), ("1.jpg", "a red dog", 1.0)], key=lambda row: caption_id(captions[row[0]].lower())
    )
    assert shown == [*first, ("4.jpg", "a dog", 1.0)]
    assert [images[place].content.read() for place in range(3)] == [picture(str(name)) for name, _, _ in shown]
    nothing, none = local_candidates(stored, ["some horse"], encoder)
    assert (nothing.candidates, none) == ([], {})
    with pytest.raises(ConfigError):
        local_candidates(stored, [" "], encoder)
