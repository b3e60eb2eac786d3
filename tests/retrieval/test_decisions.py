"""Decisions by hand: the log and what it says, and sets made anew without what was rejected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdkit import encoders
from cdkit.cli.app import execute_command
from cdkit.core.config import parse_config
from cdkit.core.errors import InputError
from cdkit.core.shards import parts
from cdkit.retrieval.config import RetrieveConfig
from cdkit.retrieval.decisions import BY_HAND, Decision, Decisions, read_all_decisions, read_decisions
from tests.support.deciding import pictures_of, rejecting
from tests.support.hashing_encoder import HashingEncoder
from tests.support.hostile_server import HostileServer
from tests.support.photo_pool import PoolPicture, index_of, picture
from tests.support.regularization_sets import read_regularization_set

ENCODER = HashingEncoder(threshold=0.6)
NOW = "2026-11-27T05:00:00+00:00"


def decided(name: str, **values: Any) -> Decision:
    facts = {"sha256": name * 64, "phash": f"{ord(name):016x}", "url": f"http://a.test/{name}", "caption": name}
    return Decision(step=0, action="reject", key=name, decided="", **(facts | values))


A, B, C = decided("a"), decided("b"), decided("c")


def test_what_was_said_last_of_a_picture_holds() -> None:
    log = Decisions().decide("reject", [A, B], NOW).decide("restore", [A], NOW).decide("reject", [A, B], NOW)
    assert [(entry.step, entry.action, entry.key) for entry in log.log] == [
        *((0, "reject", "a"), (0, "reject", "b"), (1, "restore", "a"), (2, "reject", "a"))
    ]
    assert set(log.rejected) == {"a" * 64, "b" * 64}
    assert log.perceptual == (ord("a"), ord("b"))
    assert log.urls == {"http://a.test/a", "http://a.test/b"}


def test_undo_takes_back_step_by_step_and_forgets_nothing() -> None:
    log = Decisions().decide("reject", [A, B], NOW).decide("reject", [C], NOW).decide("restore", [A], NOW)
    seen = [set(log.rejected)]
    while (earlier := log.undo(NOW)) is not log:
        assert earlier.log[: len(log.log)] == log.log
        log = earlier
        seen.append(set(log.rejected))
    names = [{key[0] for key in keys} for keys in seen]
    assert names == [{"b", "c"}, {"a", "b", "c"}, {"a", "b"}, set()]
    assert set(log.decide("reject", [B], NOW).rejected) == {"b" * 64}


def test_decisions_are_read_as_they_were_written(tmp_path: Path) -> None:
    nameless = decided("d", sha256="", url=None, phash="")
    log = (
        Decisions().decide("reject", [A, nameless], NOW).decide("restore", [A], NOW).undo("2026-11-28T00:00:00+00:00")
    )
    log.write(tmp_path / "decisions.parquet")
    assert read_decisions(tmp_path / "decisions.parquet") == log
    B_log = Decisions().decide("reject", [B], NOW)
    B_log.write(tmp_path / "other.parquet")
    both = read_all_decisions([str(tmp_path / "decisions.parquet"), str(tmp_path / "other.parquet")])
    assert set(both.rejected) == {"a" * 64, "b" * 64, "d"}


@pytest.mark.parametrize("url", ["http://A.test/a", "http://a.test:80/a", "http://user:word@a.test/a"])
def test_an_address_counts_however_it_is_spelt(url: str) -> None:
    log = Decisions().decide("reject", [A], NOW)
    assert log.refuse(url)
    assert not log.refuse("http://a.test/b")
    assert not log.refuse(None)
    assert not log.refuse("no address")


@pytest.mark.parametrize("content", [b"", b"PAR1", None, {"step": [1]}, {"action": ["drop"]}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "decisions.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        Decisions((replace(A, step=1),)).write(path)
        table = pq.read_table(path)
        if "action" in content:
            table = table.set_column(table.schema.get_field_index("action"), "action", pa.array(content["action"]))
        else:
            table = pa.table(content)
        pq.write_table(table, path)
    with pytest.raises(InputError, match=r"decisions|neither"):
        read_decisions(path)


def test_one_file_or_several_in_yaml() -> None:
    values = {"index": "indexes/mine", "prompts": ["a dog"]}
    assert parse_config(RetrieveConfig, {**values, "decisions": "log.parquet"}).decisions == ["log.parquet"]
    assert parse_config(RetrieveConfig, {**values, "decisions": ["a", "b"]}).decisions == ["a", "b"]


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    monkeypatch.setattr(encoders, "load_text_encoder", lambda *_, **__: ENCODER)
    with HostileServer() as server:
        yield server


def retrieve(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    execute_command(["retrieve", *map(str, words), "--format", "json"])
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_a_rejected_picture_never_comes_back(
    tmp_path: Path, web: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for number in range(14):
        web.files[f"/file/{number}"] = picture(number)
        rows.append(PoolPicture(f"a photo of a dog no {number}", web.url(f"file/{number}")))
    rows.append(PoolPicture("a photo of a dog", web.url("file/copy")))
    index = index_of(tmp_path / "index", rows, ENCODER)
    command = [index, "a photo of a dog", "--count", 10, "--allow-host", web.place, "--retries", 0]
    first = retrieve(capsys, *command, "--out", tmp_path / "first")
    assert (first["accepted"], first["rejected"]) == (10, {"http_404": 1})
    log = rejecting(tmp_path / "first", ["000000", "000005", "000007"], tmp_path / "decisions.parquet")
    gone = [entry.caption for entry in log.rejected.values()]
    kept = {image.caption for image in read_regularization_set(tmp_path / "first")} - set(gone)
    # The first of them once more, elsewhere and compressed anew, where nothing was before.
    web.files["/file/copy"] = picture(int(gone[0].split()[-1]), "WEBP", (250, 200))
    web.hits.clear()
    again = retrieve(capsys, *command, "--out", tmp_path / "again", "--decisions", tmp_path / "decisions.parquet")
    assert (again["accepted"], again["rejected"]) == (10, {BY_HAND: 4})
    captions = {image.caption for image in read_regularization_set(tmp_path / "again")}
    assert kept < captions
    assert not captions & {*gone, "a photo of a dog"}
    assert not any(web.hits[f"/file/{caption.split()[-1]}"] for caption in gone)
    assert web.hits["/file/copy"] == 1
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert manifest["counts"] == {"in": 14, "kept": 10, "rejected": {"rejected by hand": 4}}
    reasons = [row for path in parts(tmp_path / "again" / "rejects") for row in pq.read_table(path).to_pylist()]
    assert {row["caption"] for row in reasons if row["reason"] == BY_HAND} == {*gone, "a photo of a dog"}


def test_a_picture_at_hand_is_known_by_how_it_looks(
    tmp_path: Path, web: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    index = index_of(tmp_path / "index", [PoolPicture("a red boat", "http://a.test/1")], ENCODER)
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.jpg").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(f"a photo of a dog {number}")
    command = [index, "a photo of a dog", "--images", folder, "--min-similarity", 0.5]
    retrieve(capsys, *command, "--count", 6, "--out", tmp_path / "first")
    rejecting(tmp_path / "first", ["000002"], tmp_path / "log.parquet")
    gone = pictures_of(tmp_path / "first")["000002"].caption
    (folder / f"{gone[-1]}.jpg").write_bytes(picture(int(gone[-1]), "PNG", (300, 240)))
    data = retrieve(
        capsys, *command, "--count", 5, "--out", tmp_path / "again", "--decisions", tmp_path / "log.parquet"
    )
    assert data["accepted"] == 5
    assert data["rejected"] == {BY_HAND: 1}
    missing = retrieve(capsys, *command, "--out", tmp_path / "x", "--decisions", tmp_path / "none.parquet")
    assert missing["error"]["code"] == "input"


@pytest.mark.parametrize(
    "values",
    [
        {"step": None},
        {"step": -1},
        {"phash": "f" * 20},
        {"phash": "-1"},
        {"phash": "0x1f"},
        {"sha256": "", "url": None, "key": ""},
    ],
)
def test_a_damaged_log_is_refused_whole(tmp_path: Path, values: dict[str, Any]) -> None:
    Decisions((A, replace(B, **values))).write(tmp_path / "log.parquet")
    with pytest.raises(InputError, match="holds no decisions"):
        read_decisions(tmp_path / "log.parquet")
