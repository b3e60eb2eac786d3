"""Licence and attribution of an image: from its pool through the index into the set, its card and its layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdkit.core.shards import parts
from cdkit.execute import execute
from cdkit.index.caption_index import open_index
from cdkit.index.config import IndexConfig
from cdkit.index.search import search
from cdkit.serving.review_set import read_candidates_of, read_review_set
from tests.retrieval.conftest import retrieve
from tests.support.made_sets import scenes

CC0, CC_BY = "https://creativecommons.org/publicdomain/zero/1.0/", "Attribution License"
STATED = [(CC0, "Museum Ä"), (CC_BY, "J. Doe, 'Star'"), ("All rights reserved", "Agency"), (None, None)]


def written_pool(path: Path, **columns: list[Any]) -> Path:
    rows = scenes("star", "ball", 12)
    table = {"URL": [row.url("127.0.0.1:8532") for row in rows], "TEXT": [row.text for row in rows], **columns}
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("licences")
    licences, names = zip(*(STATED[place % len(STATED)] for place in range(12)), strict=True)
    pool = written_pool(folder / "pool.parquet", License=list(licences), Creator=list(names))
    execute("index", IndexConfig(captions=[str(pool)], encoder="embedded"), folder / "index")
    return folder / "index"


@pytest.fixture(scope="module")
def older(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same index as versions before these columns wrote it."""
    folder = tmp_path_factory.mktemp("older") / "index"
    folder.mkdir()
    for entry in index.iterdir():
        if entry.name != "image_rows":
            (folder / entry.name).symlink_to(entry)
    (folder / "image_rows").mkdir()
    for path in parts(index / "image_rows"):
        pq.write_table(pq.read_table(path).drop_columns(["licence", "attribution"]), folder / "image_rows" / path.name)
    return folder


def set_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in parts(folder / "images") for row in pq.read_table(path).to_pylist()]


def star(capsys: pytest.CaptureFixture[str], index: Path, out: Path, *more: object) -> tuple[int, dict[str, Any], str]:
    options = ("--images", "embedded", "--count", 12, "--min-similarity", 0.0, "--min-side", 16)
    return retrieve(capsys, index, "a photo of a star", *options, *more, "--out", out)


def test_what_a_pool_states_stays_with_the_image(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    star(capsys, index, tmp_path / "set", "--also-write", "imagefolder")
    rows = set_rows(tmp_path / "set")
    assert {(row["licence"], row["attribution"]) for row in rows} == set(STATED)
    card = (tmp_path / "set" / "README.md").read_text(encoding="utf-8")
    assert "Attribution License" in card
    assert "not stated" in card
    lines = (tmp_path / "set" / "imagefolder" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["attribution"] for line in lines} == {name for _, name in STATED}
    shown = [picture.as_json() for picture in read_review_set(tmp_path / "set").pictures]
    assert {(picture["licence"], picture["attribution"]) for picture in shown} == set(STATED)
    candidates = read_candidates_of(index, ["a photo of a star"], 12, 0.0)
    assert CC0 in {picture.as_json()["licence"] for picture in candidates.pictures}


def test_unknown_is_not_free(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, data, said = star(capsys, index, tmp_path / "set", "--licence", "CC0,cc-by")
    assert "licence_unknown " in said, "what is missing is told where some images are there, too"
    assert "same_url" not in said
    rows = set_rows(tmp_path / "set")
    assert (code, data.get("accepted")) == (5, len(rows)), data
    assert {row["licence"] for row in rows} == {CC0, CC_BY}
    code, data, _ = star(capsys, index, tmp_path / "nothing", "--licence", "cc-by-sa")
    assert (code, data["accepted"]) == (5, 0), "licences are known, but none is this one"
    code, data, _ = star(capsys, index, tmp_path / "set", "--licence", "cc-0")
    assert (code, "did you mean 'cc0'?" in data["error"]["message"]) == (2, True)


def test_an_index_of_an_earlier_version_opens_and_knows_no_licence(
    older: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = search(open_index(older), ["a star"], min_similarity=0.0, limit=3, encode_limit=9)
    assert found.results
    star(capsys, older, tmp_path / "set")
    assert {row["licence"] for row in set_rows(tmp_path / "set")} == {None}
    code, data, _ = star(capsys, older, tmp_path / "free", "--licence", "public-domain,cc0")
    assert (code, "unknown is not free" in data["error"]["message"]) == (3, True)
    assert "--pool-licence" in data["error"]["hint"]


def imported(folder: Path, columns: dict[str, list[Any]], **settings: Any) -> list[dict[str, Any]]:
    from cdkit.captions.config import ImportConfig

    pq.write_table(pa.table(columns), folder / "pool.parquet")
    execute("import", ImportConfig(captions=[str(folder / "pool.parquet")], **settings), folder / "out")
    return [row for path in parts(folder / "out" / "image_rows") for row in pq.read_table(path).to_pylist()]


def test_public_domain_12m_is_known_by_its_columns(tmp_path: Path) -> None:
    md5 = "0123456789abcdef0123456789ABCDEF"
    columns = {
        "id": ["1"],
        "url": ["https://pd12m.s3.us-west-2.amazonaws.com/images/a.jpeg"],
        "caption": ["The image shows a dog"],
        "width": [640],
        "height": [480],
        "mime_type": ["image/jpeg"],
        "hash": [md5],
        "license": [CC0],
        "source": ["Museum"],
    }
    (row,) = imported(tmp_path, columns)
    facts = (row["licence"], row["attribution"], row["md5"], row["width"])
    assert facts == (CC0, "Museum", md5.lower(), 640)
    assert row["source"] == "pool.parquet"


def test_megalith_10m_states_the_pages_and_the_user_the_licence(tmp_path: Path) -> None:
    columns = {
        "url": ["https://live.staticflickr.com/1/a.jpg"],
        "url_highres": ["https://live.staticflickr.com/1/a_b.jpg"],
        "url_source": ["https://www.flickr.com/photos/x/1"],
        "caption": ["a dog"],
    }
    (row,) = imported(tmp_path, columns, pool_licence="no-known-copyright")
    assert (row["url"], row["attribution"]) == (columns["url_highres"][0], columns["url_source"][0])
    assert row["licence"] == "no-known-copyright"


def test_what_tables_say_where_they_know_nothing_is_no_licence(tmp_path: Path) -> None:
    values = ["?", " ", "N/A", "cc0 ", "x" * 900, "bro\0ken", None]
    captions = [f"caption {number}" for number in range(len(values))]
    names = ["photographer"] * len(values)
    columns = {"caption": captions, "LICENSE": values, "license": [None] * len(values), "author": names}
    rows = {row["caption_id"]: row for row in imported(tmp_path, columns, pool_licence="the pool's")}
    stated = sorted(str(row["licence"]) for row in rows.values())
    assert stated == sorted(["the pool's"] * 4 + ["cc0", "x" * 500, "bro ken"])
    assert {row["attribution"] for row in rows.values()} == {"photographer"}
