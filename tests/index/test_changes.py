"""Removing, adding and compacting, and what a kill in between leaves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from cdkit.core.errors import ConfigError, OutputError
from cdkit.core.manifest import read_manifest
from cdkit.core.storage import Folder
from cdkit.core.text import caption_id
from cdkit.index.caption_index import open_index
from cdkit.index.changes.compact import compact
from cdkit.index.changes.remove import read_lines, remove
from cdkit.index.records import iterate_captions, iterate_image_rows, read_tombstones
from cdkit.index.search import search
from tests.support.hashing_encoder import HashingEncoder


@pytest.fixture(params=["exact", "compressed"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    copy = tmp_path / "index"
    shutil.copytree(request.getfixturevalue(f"{request.param}_folder"), copy)
    return copy


def found_ids(folder: Path, encoder: HashingEncoder, text: str) -> list[int]:
    [result] = search(folder, [text], min_similarity=0.7, limit=10_000, encoder=encoder)
    return [match.caption_id for match in result.results]


def test_removed_captions_are_gone_from_searches_and_readers(
    folder: Path, encoder: HashingEncoder, captions: list[str]
) -> None:
    gone = captions[:3]
    before = found_ids(folder, encoder, gone[0])
    removal = remove(folder, captions=[gone[0].upper(), f"  {gone[1]} ", gone[2], "never there"])
    assert (removal.captions, removal.rows, removal.unknown) == (3, 6, 1)
    ids = {caption_id(text) for text in gone}
    after = found_ids(folder, encoder, gone[0])
    assert after == [number for number in before if number not in ids]
    assert caption_id(gone[0]) in before
    for tables in (iterate_captions(folder), iterate_image_rows(folder)):
        assert not ids & {number for table in tables for number in table["caption_id"].to_pylist()}


def test_removed_urls_take_their_caption_along_when_nothing_is_left(
    folder: Path, encoder: HashingEncoder, captions: list[str]
) -> None:
    whole, half = caption_id(captions[0]), caption_id(captions[1])
    urls = [
        f"http://host/{whole}-0.jpg",
        f"http://host/{whole}-1.jpg",
        f"http://host/{half}-0.jpg",
        "http://x/unknown",
    ]
    removal = remove(folder, urls=urls)
    assert (removal.captions, removal.rows, removal.unknown) == (1, 3, 1)
    assert whole not in found_ids(folder, encoder, captions[0])
    [result] = search(folder, [captions[1]], limit=1, encoder=encoder)
    assert [row["url"] for row in result.results[0].rows] == [f"http://host/{half}-1.jpg"]


def test_a_url_is_removed_whatever_the_takedown_request_writes_before_its_host(
    folder: Path, captions: list[str]
) -> None:
    whole = caption_id(captions[0])
    urls = [f"http://user:secret@host/{whole}-0.jpg", "http://[photo.jpg", "http://user:secret@[x"]
    removal = remove(folder, urls=urls)
    assert (removal.rows, removal.unknown) == (1, 2)
    assert read_tombstones(folder).urls == {f"http://host/{whole}-0.jpg", "http://[photo.jpg", "http://[x"}


def test_a_line_of_a_captions_file_ends_at_a_newline_only(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes("one\r\ntwo\u2028three\x0bfour\n\n  \n five \x85six".encode())
    assert read_lines(path) == ["one", "two\u2028three\x0bfour", "five \x85six"]


def test_a_removal_changes_the_fingerprint_but_keeps_the_build_known(folder: Path, captions: list[str]) -> None:
    before = read_manifest(folder)
    remove(folder, captions=captions[:1])
    after = read_manifest(folder)
    assert before is not None
    assert after is not None
    assert after.fingerprint != before.fingerprint
    assert before.fingerprint in after.steps.values()


def test_compaction_rewrites_the_files_and_keeps_the_answers(
    folder: Path, encoder: HashingEncoder, captions: list[str]
) -> None:
    remove(folder, captions=captions[:50], urls=[f"http://host/{caption_id(captions[60])}-0.jpg"])
    query = "a small red dog near the beach"
    before = found_ids(folder, encoder, query)
    count = open_index(folder, encoder).faiss.count
    done = compact(folder)
    assert (done.dropped_captions, done.dropped_rows) == (50, 101)
    assert found_ids(folder, encoder, query) == before
    assert open_index(folder, encoder).faiss.count == count - 50
    rows = {
        number: rows
        for table in iterate_captions(folder)
        for number, rows in zip(table["caption_id"].to_pylist(), table["rows"].to_pylist(), strict=True)
    }
    assert len(rows) == count - 50
    assert rows[caption_id(captions[60])] == 1
    assert set(rows.values()) == {1, 2}
    assert len(read_tombstones(folder).caption_ids) == 50
    again = compact(folder)
    assert (again.dropped_captions, again.dropped_rows) == (0, 0)


@pytest.mark.parametrize("calls", range(6))
def test_a_change_killed_at_any_step_happened_or_did_not(
    exact_folder: Path, tmp_path: Path, encoder: HashingEncoder, captions: list[str], calls: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / "index"
    shutil.copytree(exact_folder, folder)
    remove(folder, captions=captions[:5])
    left = iter(range(calls))
    replace = os.replace

    def killed(source: object, target: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr("cdkit.index.changes.transaction.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            compact(folder)
    query = captions[10]
    assert caption_id(query) in found_ids(folder, encoder, query)
    compact(folder)
    assert not (folder / "pending").exists()
    assert open_index(folder, encoder).faiss.count == 995
    kept = {number for table in iterate_captions(folder) for number in table["caption_id"].to_pylist()}
    assert len(kept) == 995


def test_a_folder_in_use_is_left_alone(exact_folder: Path, captions: list[str]) -> None:
    with Folder(exact_folder).lock(), pytest.raises(OutputError, match="Another run"):
        remove(exact_folder, captions=captions[:1])
    assert not len(read_tombstones(exact_folder).caption_ids)


def test_nothing_to_remove_is_a_mistake(exact_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n")
    with pytest.raises(ConfigError, match="nothing to remove"):
        remove(exact_folder, captions=read_lines(tmp_path / "empty.txt"))


def test_tombstone_ids_are_sorted(exact_folder: Path, tmp_path: Path, captions: list[str]) -> None:
    folder = tmp_path / "index"
    shutil.copytree(exact_folder, folder)
    remove(folder, captions=captions[5:9])
    remove(folder, captions=captions[:5])
    ids = read_tombstones(folder).caption_ids
    assert len(ids) == 9
    assert np.all(np.diff(ids) > 0)
