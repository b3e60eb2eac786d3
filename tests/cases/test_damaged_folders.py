"""Manifests, shards and indexes that were cut off, swapped or edited by hand: what is wrong, and what to do."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdkit.captions.config import ImportConfig
from cdkit.cli.app import execute_command
from cdkit.core.errors import CdkitError, InputError
from cdkit.core.manifest import MANIFEST_NAME, STARTED_NAME, DamagedManifestError, read_manifest
from cdkit.core.shards import parts, read_parts
from cdkit.execute import execute
from cdkit.index.caption_index import INDEX_NAME, settled_manifest
from cdkit.index.changes.compact import compact
from cdkit.index.changes.remove import remove
from cdkit.index.layout import IndexSettings
from cdkit.index.search import search
from tests.captions.running import run_import, write_parquet
from tests.support.hashing_encoder import HashingEncoder
from tests.support.small_index import grammar_captions, make_index

CAPTIONS = grammar_captions(400)
# The fewest that are worth compressing.
MANY = grammar_captions(10_100)
KINDS = {
    "exact": IndexSettings(),
    "compressed": IndexSettings(bytes_per_caption=4, exact_below=0, keep_embeddings=True),
}


@pytest.fixture(scope="module")
def encoder() -> HashingEncoder:
    return HashingEncoder(32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, encoder: HashingEncoder) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("made")
    return {
        kind: make_index(root / kind, MANY if kind == "compressed" else CAPTIONS, encoder, settings)
        for kind, settings in KINDS.items()
    }


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    kind = getattr(request, "param", "exact")
    shutil.copytree(made[kind], tmp_path / "index")
    return tmp_path / "index"


def _edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    change(manifest)
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def _uses(folder: Path, encoder: HashingEncoder) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "search", lambda: search(folder, [CAPTIONS[0]], min_similarity=0.5, encoder=encoder)
    yield "remove", lambda: remove(folder, captions=[CAPTIONS[1]])
    yield "compact", lambda: compact(folder)


TEXTS = {
    "empty": b"",
    "cut off": b'{"stage": "index", "fingerprint": "f',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep inside": b'{"stage": "index", "fingerprint": "f", "details": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "not UTF-8": b'{"stage": "\xff"}',
    "UTF-16": '{"stage": "index"}'.encode("utf-16"),
    "endless number": b'{"stage": "index", "fingerprint": "f", "version": ' + b"9" * 5000 + b"}",
    "a list": b"[]",
    "a word": b'"manifest"',
    "nothing": b"null",
}


@pytest.mark.parametrize("name", [MANIFEST_NAME, STARTED_NAME])
@pytest.mark.parametrize("text", TEXTS)
def test_manifests_that_are_none(folder: Path, encoder: HashingEncoder, text: str, name: str) -> None:
    (folder / name).write_bytes(TEXTS[text])
    with pytest.raises(InputError, match=name) as error:
        read_manifest(folder, name)
    assert error.value.hint
    if name == MANIFEST_NAME:
        for _, use in _uses(folder, encoder):
            with pytest.raises(InputError, match=name):
                use()


EDITS: dict[str, Any] = {
    "version": "one",
    "config": [],
    "inputs": {"captions": 5},
    "steps": None,
    "details": [],
    "run": {"seconds": "long"},
    "counts": {"in": 5, "kept": 1, "rejected": {}},
    "details.index": None,
    "details.index.exact": "yes",
    "details.index.vectors": 10**30,
    "details.index.nprobe": -1,
    "details.index.margin": float("nan"),
    "details.index.shards": {"captions": 4},
    "details.index.shards.captions": 3,
    "details.index.sha256": "0" * 64,
    "details.index.bytes": 1.5,
    "details.encoder": {},
    "details.encoder.dimension": 0,
    "details.encoder.weights": 12,
    "details.encoder.default_threshold": float("inf"),
    "details.recall": "good",
    "details.recall.changed_since": 3,
    "details.captions": "many",
    "details.rows": -1,
    "details.additions": [{}],
}


def _set(document: dict[str, Any], place: str, value: Any) -> None:
    *inside, last = place.split(".")
    for key in inside:
        document = document[key]
    document[last] = value


@pytest.mark.parametrize("place", EDITS)
def test_a_manifest_that_was_edited(folder: Path, encoder: HashingEncoder, place: str) -> None:
    _edit(folder, lambda manifest: _set(manifest, place, EDITS[place]))
    for _, use in _uses(folder, encoder):
        with pytest.raises(InputError) as error:
            use()
        assert "--force" in error.value.hint
    assert execute_command(["index", "info", str(folder)]) == 3


def test_another_dimension_is_another_encoder(folder: Path, encoder: HashingEncoder) -> None:
    _edit(folder, lambda manifest: _set(manifest, "details.encoder.dimension", 33))
    with pytest.raises(InputError, match="was made with the encoder"):
        search(folder, [CAPTIONS[0]], encoder=encoder)
    with pytest.raises(InputError, match="is not the index that the manifest describes"):
        compact(folder)


VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([1]) | st.just({"a": 1})
)


def _places(document: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in document.items() if isinstance(document, dict) else ():
        yield (*path, key)
        yield from _places(value, (*path, key))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_edit_is_harmless_or_named(folder: Path, encoder: HashingEncoder, data: st.DataObject) -> None:
    path = folder / MANIFEST_NAME
    before = path.read_text()
    document = copy.deepcopy(json.loads(before))
    place = data.draw(st.sampled_from(sorted(_places(document))))
    inside = document
    for key in place[:-1]:
        inside = inside[key]
    if data.draw(st.booleans()):
        inside[place[-1]] = data.draw(VALUES)
    else:
        del inside[place[-1]]
    path.write_text(json.dumps(document))
    try:
        try:
            search(folder, [CAPTIONS[0]], min_similarity=0.5, encoder=encoder)
        except CdkitError as error:
            assert error.hint
        assert execute_command(["index", "info", str(folder)]) in (0, 3)
    finally:
        path.write_text(before)


def test_nan_of_an_earlier_cdkit_is_nothing(folder: Path, encoder: HashingEncoder) -> None:
    _edit(folder, lambda manifest: manifest["details"]["recall"].update(worst_tenth=float("nan")))
    assert "NaN" in (folder / MANIFEST_NAME).read_text()
    assert settled_manifest(folder).details["recall"]["worst_tenth"] is None
    assert search(folder, [CAPTIONS[0]], encoder=encoder)[0].results


def test_force_replaces_what_a_damaged_manifest_stands_for(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = write_parquet(tmp_path / "p.parquet", caption=["a dog", ""])
    run_import(out, pool)
    config = ImportConfig(captions=[str(pool)], workers=1)
    for name in (MANIFEST_NAME, STARTED_NAME):
        (out / name).write_text('{"stage": "import", "fingerprint": 5}')
        if name == MANIFEST_NAME:
            with pytest.raises(DamagedManifestError, match=rf"{name} is damaged: .*fingerprint") as error:
                execute("import", config, out)
            assert "--force" in error.value.hint
        assert execute("import", config, out, force=True).manifest.counts["kept"] == 1
        assert not (out / STARTED_NAME).exists()
    # What was found done is printed from the manifest.
    _edit(out, lambda manifest: manifest["counts"].pop("rejected"))
    command = ["index", "import", "--captions", str(pool), "--out", str(out)]
    assert execute_command(command) == 3
    assert "manifest.json is damaged" in capsys.readouterr().err
    assert execute_command([*command, "--force"]) == 0
    # Another program's manifest is not cdkit's to replace.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / MANIFEST_NAME).write_text('{"name": "an extension"}')
    assert (
        execute_command(["index", "import", "--captions", str(pool), "--out", str(tmp_path / "other"), "--force"]) == 3
    )
    assert (tmp_path / "other" / MANIFEST_NAME).exists()


def _columns(table: pa.Table, value: Any) -> pa.Table:
    return pa.table({name: [value] * len(table) for name in table.column_names})


SHARDS: dict[str, Callable[[Path, pa.Table], object]] = {
    "gone": lambda path, table: path.unlink(),
    "empty": lambda path, table: path.write_bytes(b""),
    "cut off": lambda path, table: path.write_bytes(path.read_bytes()[:-20]),
    "noise": lambda path, table: path.write_bytes(b"PAR1" + b"\x07" * 500 + b"PAR1"),
    "another table": lambda path, table: pq.write_table(pa.table({"x": [1]}), path),
    "other types": lambda path, table: pq.write_table(_columns(table, "x"), path),
    "nulls": lambda path, table: pq.write_table(
        pa.table([pa.nulls(len(table), field.type) for field in table.schema], schema=table.schema), path
    ),
    "a folder": lambda path, table: (path.unlink(), path.mkdir()),
    "a pipe": lambda path, table: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("folder", ["compressed"], indirect=True)
@pytest.mark.parametrize("kind", ["captions", "image_rows", "embeddings"])
@pytest.mark.parametrize("damage", SHARDS)
@pytest.mark.timeout(120)
def test_shards_that_are_damaged(folder: Path, encoder: HashingEncoder, kind: str, damage: str) -> None:
    path = parts(folder / kind)[1]
    SHARDS[damage](path, pq.read_table(path))
    if damage != "gone":
        with pytest.raises(InputError, match=path.name) as error:
            list(read_parts(folder / kind))
        assert error.value.hint
    with pytest.raises(InputError, match=kind) as error:
        search(folder, MANY[:30], min_similarity=0.5, limit=10_000, encoder=encoder)
    assert "--force" in error.value.hint
    with pytest.raises(InputError, match=kind):
        compact(folder)


def _flat(dimension: int, count: int, metric: int = faiss.METRIC_INNER_PRODUCT) -> Any:
    index = faiss.IndexIDMap2(faiss.IndexFlat(dimension, metric))
    index.add_with_ids(np.ones((count, dimension), np.float32), np.arange(count))
    return index


def _plain(dimension: int, count: int) -> Any:
    index = faiss.IndexFlatIP(dimension)
    index.add(np.ones((count, dimension), np.float32))
    return index


FILES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"not an index"),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "fewer vectors": lambda path: faiss.write_index(_flat(32, 7), str(path)),
    "another dimension": lambda path: faiss.write_index(_flat(33, 400), str(path)),
    "another metric": lambda path: faiss.write_index(_flat(32, 400, faiss.METRIC_L2), str(path)),
    "without ids": lambda path: faiss.write_index(_plain(32, 400), str(path)),
    "another kind": lambda path: faiss.write_index(faiss.IndexLSH(32, 64), str(path)),
}


@pytest.mark.parametrize("folder", ["exact", "compressed"], indirect=True)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("said", [False, True], ids=["the manifest's hash", "its own hash"])
def test_faiss_files_that_are_no_such_index(folder: Path, encoder: HashingEncoder, file: str, said: bool) -> None:
    path = folder / INDEX_NAME
    FILES[file](path)
    if said:
        facts = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        _edit(folder, lambda manifest: manifest["details"]["index"].update(facts))
    for use in (lambda: search(folder, [CAPTIONS[0]], encoder=encoder), lambda: compact(folder)):
        with pytest.raises(InputError, match=INDEX_NAME) as error:
            use()
        assert "--force" in error.value.hint


COMMITS = {
    "no JSON": "{",
    "a list": "[]",
    "nothing": "{}",
    "deep": "[" * 100_000,
    "other types": '{"moves": {"captions/part-00000.parquet": 5}, "deletes": 5}',
    "a file above": '{"moves": {}, "deletes": ["../precious.parquet"]}',
    "a file anywhere": '{"moves": {}, "deletes": ["PRECIOUS"]}',
    "a move from above": '{"moves": {"captions/part-00000.parquet": "../precious.parquet"}, "deletes": []}',
    "a move to above": '{"moves": {"../precious.parquet": "captions/part-00000.parquet"}, "deletes": []}',
}


@pytest.mark.parametrize("commit", COMMITS)
def test_a_change_that_came_with_the_folder_touches_nothing_outside(
    folder: Path, encoder: HashingEncoder, commit: str
) -> None:
    precious = folder.parent / "precious.parquet"
    precious.write_text("precious")
    (folder / "pending").mkdir()
    (folder / "pending" / "commit.json").write_text(COMMITS[commit].replace("PRECIOUS", str(precious)))
    for _, use in _uses(folder, encoder):
        with pytest.raises(InputError, match=r"commit\.json is damaged") as error:
            use()
        assert "Delete" in error.value.hint
    assert precious.read_text() == "precious"
    assert len(parts(folder / "captions")) == 4


@pytest.mark.parametrize("table", [pa.table({"x": [1]}), pa.table({"caption_id": ["x"], "url": [1]})])
def test_tombstones_that_are_damaged(folder: Path, encoder: HashingEncoder, table: pa.Table) -> None:
    (folder / "removed").mkdir()
    pq.write_table(table, folder / "removed" / "part-00000.parquet")
    for _, use in _uses(folder, encoder):
        with pytest.raises(InputError, match="removed"):
            use()


@pytest.mark.parametrize("name", [MANIFEST_NAME, STARTED_NAME, INDEX_NAME])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
@pytest.mark.timeout(60)
def test_files_of_an_index_that_are_no_files(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    assert execute_command(["index", "info", str(folder)]) == (0 if name == STARTED_NAME else 3)


def test_paths_that_libraries_do_not_take(made: dict[str, Path], tmp_path: Path, encoder: HashingEncoder) -> None:
    strange = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(made["exact"], strange)
    for _, use in _uses(strange, encoder):
        with pytest.raises(InputError) as error:
            use()
        assert "UTF-8" in error.value.hint
    pool = tmp_path / "p.csv"
    pool.write_text("caption\na dog\n")
    for out in (tmp_path / os.fsdecode(b"out\xe9"), tmp_path / ("x" * 300), tmp_path / "/".join(["y" * 200] * 25)):
        assert execute_command(["index", "import", "--captions", str(pool), "--out", str(out)]) in (2, 3, 7)
        assert execute_command(["index", "info", str(out)]) == 3
