"""Folders of pictures as pools: where captions come from, what the files say of themselves, and how they are found."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cdkit.pictures.collection import address_of, at_address, is_address, is_collection, write_collection
from cdkit.pictures.descriptions import read_description
from cdkit.pictures.folder import list_folder
from cdkit.pictures.reading import read_pictures
from tests.support.photo_pool import picture

XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description>
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">a dog &amp; a cat,
süß</rdf:li></rdf:Alt></dc:description>
<dc:creator><rdf:Seq><rdf:li>J. Doe</rdf:li></rdf:Seq></dc:creator>
<dc:rights><rdf:Alt><rdf:li xml:lang="x-default">all mine</rdf:li></rdf:Alt></dc:rights>{licence}
</rdf:Description></rdf:RDF></x:xmpmeta>"""
LICENCE = '<cc:license rdf:resource="https://creativecommons.org/licenses/by/4.0/"/>'


def jpeg(*, exif: dict[int, Any] | None = None, xmp: str | None = None, size: int = 40, **options: Any) -> bytes:
    image, target = Image.linear_gradient("L").resize((2 * size, size)).convert("RGB"), io.BytesIO()
    tags = image.getexif()
    tags.update(exif or {})
    image.save(target, "JPEG", exif=tags, **({"xmp": xmp.encode()} if xmp else {}), **options)
    return target.getvalue()


def iptc(caption: bytes, author: bytes) -> bytes:
    """A JPEG's marker of Photoshop that holds IPTC's caption and by-line."""
    records = b"".join(
        b"\x1c\x02" + bytes([tag]) + len(text).to_bytes(2, "big") + text
        for tag, text in ((120, caption), (80, author))
    )
    block = b"8BIM\x04\x04\0\0" + len(records).to_bytes(4, "big") + records + b"\0" * (len(records) % 2)
    data = b"Photoshop 3.0\0" + block
    return b"\xff\xed" + (len(data) + 2).to_bytes(2, "big") + data


def test_xmp_says_description_author_and_licence() -> None:
    said = read_description(jpeg(xmp=XMP.format(licence=LICENCE), exif={0x010E: "EXIF says otherwise"}))
    assert (said.caption, said.attribution) == ("a dog & a cat, süß", "J. Doe")
    assert said.licence == "https://creativecommons.org/licenses/by/4.0/"
    assert (said.width, said.height) == (80, 40)
    assert read_description(jpeg(xmp=XMP.format(licence=""))).licence == "all mine"
    short = '<rdf:Description dc:description="plain" xmpRights:WebStatement="https://a.test/terms"/>'
    assert read_description(jpeg(xmp=short)).licence == "https://a.test/terms"


def test_iptc_counts_where_xmp_says_nothing() -> None:
    plain = jpeg(exif={0x010E: "of EXIF"})
    content = plain[:2] + iptc("ein süßer Hund".encode(), b"A. Photographer") + plain[2:]
    said = read_description(content)
    assert (said.caption, said.attribution) == ("ein süßer Hund", "A. Photographer")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({0x010E: "a red car"}, "a red car"),
        ({0x010E: "OLYMPUS DIGITAL CAMERA         ", 0x9C9B: "ein Haus\0".encode("utf-16-le")}, "ein Haus"),
        ({0x010E: "DCIM\\100MEDIA\\DJI_0001.JPG"}, None),
        ({0x010E: "   "}, None),
        ({0x9C9C: "a comment\0".encode("utf-16-le")}, "a comment"),
        ({}, None),
    ],
)
def test_exif_describes_unless_the_camera_wrote_it(tags: dict[int, Any], expected: str | None) -> None:
    assert read_description(jpeg(exif=tags)).caption == expected


def test_hostile_metadata_are_no_description() -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]><dc:description>&a;&a;</dc:description>' + "<" * 100_000
    assert read_description(jpeg(xmp=bomb[:60_000])).caption in (None, "&a;&a;")
    for content in (b"", b"<html>", jpeg()[:30], b"\xff\xd8\xff\xe1\xff\xff" + b"\0" * 50):
        assert read_description(content).caption is None


def rows_of(folder: Path, out: Path) -> list[dict[str, Any]]:
    write_collection(folder, out)
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return rows


def test_a_folder_of_files_with_every_kind_of_caption(tmp_path: Path) -> None:
    folder = tmp_path / "my pics #1, ü"
    (folder / "sub").mkdir(parents=True)
    (folder / "a b.jpg").write_bytes(jpeg(exif={0x010E: "of the camera"}))
    (folder / "a b.txt").write_text("a text,\nof two lines", encoding="utf-8")
    (folder / "sub" / "é%20#.jpg").write_bytes(jpeg(size=41))
    row = {"file_name": "é%20#.jpg", "text": 'a "row"', "License": "CC BY 4.0", "creator": "É", "is_nsfw": False}
    (folder / "sub" / "metadata.jsonl").write_text(json.dumps(row))
    (folder / "own.jpg").write_bytes(jpeg(exif={0x010E: "its own", 0x8298: "CC0"}, size=42))
    (folder / "bare.png").write_bytes(picture(1, "PNG"))
    rows = {row["caption"]: row for row in rows_of(folder, tmp_path / "out.parquet")}
    assert set(rows) == {"a text, of two lines", 'a "row"', "its own", None}
    assert rows["its own"]["licence"] == "CC0"
    assert [rows['a "row"'][name] for name in ("licence", "attribution", "is_nsfw")] == ["CC BY 4.0", "É", "false"]
    for row in rows.values():
        content = at_address(row["url"])
        assert content is not None
        with Image.open(io.BytesIO(content.read())) as image:
            assert image.size == (row["width"], row["height"])


def _tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _table(path: Path, **columns: list[Any]) -> None:
    pq.write_table(pa.table({"status": ["success"] * 2, **columns}), path)


@pytest.mark.parametrize("layout", ["tars with a table", "tars alone", "files", "parquet"])
def test_img2dataset_shards_are_found_again_by_their_addresses(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    images = [picture(number, "JPEG") for number in range(2)]
    keys, captions, urls = ["000000000", "000000001"], ["a dog", "a cat"], ["http://a.test/1", "http://a.test/2"]
    # Further columns that img2dataset was asked to keep.
    facts = {"key": keys, "caption": captions, "url": urls, "license": ["CC0", None], "PUNSAFE": [0.01, 0.99]}
    if layout == "parquet":
        _table(folder / "00000.parquet", **facts, jpg=images)
    elif layout == "files":
        _table(folder / "00000.parquet", **facts)
        (folder / "00000").mkdir()
        for key, content in zip(keys, images, strict=True):
            (folder / "00000" / f"{key}.jpg").write_bytes(content)
    else:
        texts = {f"{key}.txt": caption.encode() for key, caption in zip(keys, captions, strict=True)}
        for place, key in enumerate(keys):
            row = {name: column[place] for name, column in facts.items()}
            texts[f"{key}.json"] = json.dumps(row).encode()
        _tar(
            folder / "00000.tar",
            {**{f"{key}.jpg": content for key, content in zip(keys, images, strict=True)}, **texts},
        )
        if layout == "tars with a table":
            _table(folder / "00000.parquet", **facts)
    tables = [name for name in list_folder(folder).others if name.endswith(".parquet")]
    assert is_collection(list_folder(folder), tables)
    rows = rows_of(folder, tmp_path / "out.parquet")
    assert [row["caption"] for row in rows] == captions
    for row, content in zip(rows, images, strict=True):
        found = at_address(row["url"])
        assert found is not None
        assert found.read() == content
    assert [row["attribution"] for row in rows] == urls
    assert [row["licence"] for row in rows] == ["CC0", None]
    assert [row["punsafe"] for row in rows] == ["0.01", "0.99"]


def test_a_pool_with_some_pictures_beside_it_is_a_pool(tmp_path: Path) -> None:
    (tmp_path / "header.jpg").write_bytes(jpeg())
    _table(tmp_path / "part-0.parquet", caption=["a", "b"])
    assert not is_collection(list_folder(tmp_path), ["part-0.parquet"])
    assert not is_collection(list_folder(tmp_path), ["metadata.jsonl", "captions.csv"])
    _table(tmp_path / "0001.parquet", caption=["a", "b"])
    assert not is_collection(list_folder(tmp_path), ["0001.parquet"]), "no key: not img2dataset's"
    assert is_collection(list_folder(tmp_path), [])


def test_addresses_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (image,) = read_pictures(tmp_path).pictures
    address = address_of(image)
    assert is_address(address)
    assert not is_address("http://a.test/a.jpg")
    assert at_address("https://a.test/a.jpg") is None
    (tmp_path / "a.jpg").unlink()
    assert at_address(address) is None
