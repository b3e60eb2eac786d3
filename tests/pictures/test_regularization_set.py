"""The set on disk: what was written is read back, without reading more than was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cdkit.core.errors import InputError
from cdkit.core.manifest import Manifest
from cdkit.core.shards import parts
from cdkit.core.storage import Folder
from cdkit.pictures import regularization_set
from cdkit.pictures.regularization_set import SetRow, iterate_regularization_set, write_images
from tests.support.photo_pool import picture
from tests.support.regularization_sets import read_regularization_set


def make_set(folder: Path, count: int) -> list[SetRow]:
    rows = []
    for number in range(count):
        path = folder.parent / f"stored-{number}.jpg"
        path.write_bytes(picture(number))
        url = f"http://a.test/{number}" if number % 2 else None
        rows.append(
            SetRow(f"{number:06d}", path, f"dog {number}", 1 - number / 64, url, 200, 160, "s", "0", "pool", "a dog")
        )
    write_images(Folder(folder), rows, "f" * 64)
    Manifest("retrieve", 1, "f" * 64, {}, {}).write(folder)
    return rows


def test_what_was_written_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regularization_set, "SHARD_IMAGES", 4)
    rows = make_set(tmp_path / "set", 10)
    assert len(parts(tmp_path / "set" / "images")) == 3
    read = read_regularization_set(tmp_path / "set")
    assert [image.key for image in read] == [row.key for row in rows]
    assert [image.image for image in read] == [row.path.read_bytes() for row in rows]
    assert [(image.caption, image.similarity, image.url, image.source) for image in read] == [
        (row.caption, row.similarity, row.url, row.source) for row in rows
    ]
    assert next(iterate_regularization_set(tmp_path / "set")) == read[0]


def test_an_empty_set_is_a_set(tmp_path: Path) -> None:
    make_set(tmp_path / "set", 0)
    assert read_regularization_set(tmp_path / "set") == []


def test_hugging_face_finds_pictures(tmp_path: Path) -> None:
    make_set(tmp_path / "set", 1)
    read = pq.read_schema(parts(tmp_path / "set" / "images")[0])
    features = json.loads(read.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == read.names
    assert features["image"] == {"_type": "Image"}
    assert features["similarity"] == {"dtype": "float32", "_type": "Value"}


def test_what_is_no_finished_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_regularization_set(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no finished"):
        read_regularization_set(tmp_path)
    make_set(tmp_path / "set", 3)
    (tmp_path / "set" / "manifest.json").rename(tmp_path / "set" / "started.json")
    with pytest.raises(InputError) as caught:
        read_regularization_set(tmp_path / "set")
    assert "finish" in caught.value.hint
    (tmp_path / "set" / "started.json").rename(tmp_path / "set" / "manifest.json")
    shard = parts(tmp_path / "set" / "images")[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        read_regularization_set(tmp_path / "set")
    shard.unlink()
    with pytest.raises(InputError, match="no shards"):
        read_regularization_set(tmp_path / "set")
