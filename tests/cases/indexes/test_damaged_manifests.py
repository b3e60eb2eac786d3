"""Manifests, shards and indexes that were cut off, swapped or edited by hand: what is wrong, and what to do."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdkit.captions.config import ImportConfig
from cdkit.cli.app import execute_command
from cdkit.core.errors import CdkitError, InputError
from cdkit.core.manifest import MANIFEST_NAME, STARTED_NAME, DamagedManifestError, read_manifest
from cdkit.execute import execute
from cdkit.index.caption_index import settled_manifest
from cdkit.index.changes.compact import compact
from cdkit.index.search import search
from tests.captions.running import run_import, write_parquet
from tests.cases.indexes.conftest import CAPTIONS, edit, uses
from tests.support.hashing_encoder import HashingEncoder

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
        for _, use in uses(folder, encoder):
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
    edit(folder, lambda manifest: _set(manifest, place, EDITS[place]))
    for _, use in uses(folder, encoder):
        with pytest.raises(InputError) as error:
            use()
        assert "--force" in error.value.hint
    assert execute_command(["index", "info", str(folder)]) == 3


def test_another_dimension_is_another_encoder(folder: Path, encoder: HashingEncoder) -> None:
    edit(folder, lambda manifest: _set(manifest, "details.encoder.dimension", 33))
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
    edit(folder, lambda manifest: manifest["details"]["recall"].update(worst_tenth=float("nan")))
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
    edit(out, lambda manifest: manifest["counts"].pop("rejected"))
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
