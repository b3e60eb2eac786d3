"""What captions are, by how they are named: an index, pool files with or without addresses, pictures, none."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdkit.core.errors import ConfigError, InputError
from cdkit.drafting.captions import indexes_at_hand, look_at_captions
from cdkit.encoders import load_text_encoder
from tests.drafting.test_photos import write_photo
from tests.support.small_index import grammar_captions, make_index


def test_none_and_embedded() -> None:
    assert look_at_captions([]).kind == look_at_captions(["none"]).kind == "none"
    embedded = look_at_captions(["embedded"])
    assert (embedded.kind, embedded.pictures) == ("embedded", True)


def test_pool_files_with_addresses_and_without(tmp_path: Path) -> None:
    with_addresses, without = tmp_path / "links.csv", tmp_path / "nur Texte.parquet"
    with_addresses.write_text("url,caption\nhttps://example.org/1.jpg,a dog\n")
    pq.write_table(pa.table({"caption": ["a dog"]}), without)
    assert look_at_captions([str(with_addresses)]).pictures is True
    found = look_at_captions([str(without)])
    assert (found.kind, found.pictures) == ("pool", False)
    assert found.described == "1 pool file, which names no pictures"
    assert look_at_captions([str(tmp_path)]).described.startswith("2 pool files")


def test_a_folder_of_captioned_pictures(tmp_path: Path) -> None:
    write_photo(tmp_path / "1.png", 1)
    (tmp_path / "1.txt").write_text("a dog")
    found = look_at_captions([str(tmp_path)])
    assert (found.kind, found.pictures) == ("pool", True)


def test_an_index_is_known_by_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = load_text_encoder("embedded", precision="fp32")
    make_index(tmp_path / "indexes" / "mine", grammar_captions(50), encoder)
    assert indexes_at_hand() == ["indexes/mine"]
    found = look_at_captions([str(tmp_path / "indexes" / "mine")])
    assert (found.kind, found.encoder, found.pictures) == ("index", "embedded", True)
    hub = look_at_captions(["hub:someone/index"])
    assert (hub.kind, hub.pictures) == ("index", None)


@pytest.mark.parametrize("values", [["none", "pool.csv"], ["embedded", "pool.csv"], ["hub:a/b", "hub:a/c"]])
def test_what_stands_alone_is_said(values: list[str]) -> None:
    with pytest.raises(ConfigError, match="stands alone"):
        look_at_captions(values)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        look_at_captions([str(tmp_path / "gone.csv")])
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no caption column"):
        look_at_captions([str(tmp_path / "odd.csv")])
