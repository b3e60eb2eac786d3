"""A folder of pictures as the pool: imported, indexed and retrieved from without a network; nothing is moved."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdkit.cli.app import execute_command
from cdkit.core.shards import parts
from cdkit.embedded.pool import picture_bytes
from tests.retrieval.conftest import rejected, retrieve
from tests.support.made_sets import scenes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collections") / "my stärs"
    folder.mkdir()
    for number, row in enumerate(scenes("star", "ball", 8)):
        (folder / f"{number} star.png").write_bytes(picture_bytes(row.seed, 256, "png"))
        (folder / f"{number} star.txt").write_text(row.text)
    (folder / "bare.png").write_bytes(picture_bytes(1, 256, "png"))
    return folder


@pytest.fixture(scope="module")
def index(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = tmp_path_factory.mktemp("index") / "index"
    arguments = ["index", "build", "--captions", str(folder), "--encoder", "embedded", "--out", str(index)]
    assert execute_command([*arguments, "--pool-licence", "CC BY 4.0"]) == 0
    return index


def test_images_come_from_where_they_lie(
    folder: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    capsys.readouterr()
    options = ("--count", 6, "--min-similarity", 0.0, "--licence", "cc-by")
    code, data, _ = retrieve(capsys, index, "a photo of a star", *options, "--out", tmp_path / "set")
    assert (code, data["accepted"]) == (0, 6)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    rows = [row for path in parts(tmp_path / "set" / "images") for row in pq.read_table(path).to_pylist()]
    assert all(row["source"].startswith("my stärs/") and row["source"].endswith(" star.png") for row in rows)
    assert {(row["url"], row["licence"]) for row in rows} == {(None, "CC BY 4.0")}, "nobody else has these files"


def test_a_file_that_is_gone_is_counted(
    folder: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = folder / "3 star.png"
    content = gone.read_bytes()
    gone.unlink()
    try:
        options = ("--count", 8, "--min-similarity", 0.0)
        code, data, _ = retrieve(capsys, index, "a photo of a star", *options, "--out", tmp_path / "set")
    finally:
        gone.write_bytes(content)
    assert (code, data["rejected"]["missing"]) == (5, 1)
    assert [row["detail"] for row in rejected(tmp_path / "set")] == ["the file is not there any more"]


def test_a_changed_folder_is_another_input(folder: Path, index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["index", "build", "--captions", str(folder), "--encoder", "embedded", "--out", str(index)]
    build += ["--pool-licence", "CC BY 4.0", "--format", "json"]
    assert execute_command(build) == 0
    assert "up to date" in capsys.readouterr().err
    text = folder / "0 star.txt"
    before = text.read_text()
    text.write_text("something else")
    try:
        assert execute_command(build) == 7
    finally:
        text.write_text(before)


def test_a_pool_from_elsewhere_may_not_name_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture_bytes(1, 256, "png"))
    rows = {"caption": ["a star", "a ball"], "url": [secret.as_uri(), "http://a.test/1"]}
    pq.write_table(pa.table(rows), tmp_path / "pool.parquet")
    arguments = ["index", "import", "--captions", str(tmp_path / "pool.parquet"), "--out", str(tmp_path / "out")]
    assert execute_command(arguments) == 0
    (row,) = [row for path in parts(tmp_path / "out" / "rejects") for row in pq.read_table(path).to_pylist()]
    assert (row["reason"], row["value"]) == ("bad_url", secret.as_uri())


def test_pictures_without_a_word_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(picture_bytes(1, 256, "png"))
    arguments = ["index", "import", "--captions", str(tmp_path / "pics"), "--out", str(tmp_path / "out")]
    assert execute_command([*arguments, "--format", "json"]) == 3
    assert "1 empty" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_rows_of_a_folder_are_rated_as_those_of_any_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pics").mkdir()
    rows = [{"file_name": f"{number}.png", "text": f"star {number}", "punsafe": number} for number in range(2)]
    for row in rows:
        (tmp_path / "pics" / row["file_name"]).write_bytes(picture_bytes(row["punsafe"], 256, "png"))
    (tmp_path / "pics" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["index", "import", "--captions", str(tmp_path / "pics"), "--out", str(tmp_path / "out")]
    assert execute_command(arguments) == 0
    (row,) = [row for path in parts(tmp_path / "out" / "rejects") for row in pq.read_table(path).to_pylist()]
    assert row["reason"] == "punsafe"
