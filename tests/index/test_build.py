"""The index stage through `execute`, on a real tiny CLIP: whole, killed, continued, and added to."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cdkit.captions.config import ImportConfig
from cdkit.core.errors import InputError, OutputError
from cdkit.core.manifest import read_manifest
from cdkit.core.protocols import Context
from cdkit.core.shards import parts
from cdkit.core.storage import read_json, write_json
from cdkit.engines.local import LocalEngine
from cdkit.execute import execute
from cdkit.index.caption_index import open_index
from cdkit.index.changes.add import Addition, add_captions
from cdkit.index.changes.remove import remove
from cdkit.index.config import IndexConfig
from cdkit.index.records import iterate_captions, iterate_image_rows
from cdkit.index.search import search
from cdkit.inputs import resolve_inputs
from tests.support.small_index import grammar_captions
from tests.support.tiny_models import clip_folder

RUN = """
import sys
from pathlib import Path
import os, signal
from cdkit.index.config import IndexConfig
from cdkit.execute import execute
left, replace = int(sys.argv[3]), os.replace

def dying(source, target):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = dying
execute("index", IndexConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
"""
# What torch and its matrix library would use, before and after; they share FAISS's OpenMP.
THREADS = """
import re, sys
from pathlib import Path
import torch
from cdkit.index.config import IndexConfig
from cdkit.execute import execute

def threads():
    return re.findall(r"(\\w+_max_threads)\\(\\) : (\\d+)", torch.__config__.parallel_info())

before = threads()
execute("index", IndexConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
assert before and threads() == before, (before, threads())
"""


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip"))


def write_pool(path: Path, captions: list[str], first: int = 0) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["caption", "url"])
        writer.writerows([caption, f"http://host/{first + number}.jpg"] for number, caption in enumerate(captions))
    return path


def config_for(encoder_folder: Path, *pools: Path, **values: object) -> IndexConfig:
    given = {"captions": [str(pool) for pool in pools], "encoder": f"transformers:{encoder_folder}", "workers": 1}
    return IndexConfig.model_validate({**given, "threads": 1, "device": "cpu", **values})


def content(folder: Path) -> dict[str, bytes]:
    names = ["captions", "image_rows"]
    files = [path for name in names for path in parts(folder / name)] + [folder / "caption.index"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _add(folder: Path, config: ImportConfig, context: Context) -> Addition:
    return add_captions(folder, config, resolve_inputs(config), context)


def test_a_built_index_finds_its_captions(encoder_folder: Path, tmp_path: Path) -> None:
    captions = grammar_captions(300)
    pool = write_pool(tmp_path / "pool.csv", captions + captions[:10])
    result = execute("index", config_for(encoder_folder, pool), tmp_path / "index")
    details = result.manifest.details
    assert details["index"]["factory"] == "IDMap2,Flat"
    assert details["index"]["threads"] == 1
    assert details["recall"]["threshold_recall"] in (None, 1.0)
    assert details["recall"]["top_200_recall"] == 1.0
    assert not (tmp_path / "index" / "embeddings").exists()
    [found] = search(tmp_path / "index", [captions[5]], limit=1)
    assert found.results[0].caption == captions[5]
    assert {row["url"] for row in found.results[0].rows} == {"http://host/5.jpg", "http://host/305.jpg"}
    assert execute("index", config_for(encoder_folder, pool), tmp_path / "index").state == "cached"


def run_build(config: IndexConfig, out: Path, renames: int = 0) -> int:
    """Build in a process of its own that is killed (SIGKILL) in the middle of its n-th rename; 0: never."""
    command = [sys.executable, "-c", RUN, config.model_dump_json(), str(out), str(renames)]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode


def test_a_build_leaves_torch_its_threads(encoder_folder: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.csv", grammar_captions(60))
    config = config_for(encoder_folder, pool, threads=2)
    command = [sys.executable, "-c", THREADS, config.model_dump_json(), str(tmp_path / "index")]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _kill_and_finish(config: IndexConfig, out: Path, kills: int, furthest: int) -> None:
    """Kill the build at random steps; no shard that a killed run finished is written again."""
    steps = random.Random(0)
    seen: dict[Path, int] = {}
    died = 0
    for _ in range(kills):
        died += run_build(config, out, steps.randint(1, furthest)) == -signal.SIGKILL
        for path in _finished(out):
            assert seen.setdefault(path, path.stat().st_ino) == path.stat().st_ino
    assert died >= kills // 2
    assert run_build(config, out) == 0


def _finished(out: Path) -> list[Path]:
    folders = ("captions", "image_rows", "embeddings", "building/codes")
    return [path for name in folders for path in (out / name).glob("part-*")]


@pytest.mark.timeout(900)
def test_a_build_killed_three_times_ends_as_if_it_never_was(encoder_folder: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.csv", grammar_captions(400))
    config = config_for(encoder_folder, pool, keep_embeddings=True)
    execute("index", config, tmp_path / "whole")
    _kill_and_finish(config, tmp_path / "killed", 3, 8)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def make_older(out: Path) -> None:
    """Have an earlier version of the index stage have made `out`."""
    manifest = read_manifest(out)
    assert manifest is not None
    older = replace(manifest, version=manifest.version - 1)
    fingerprint = older.identity().fingerprint
    replace(older, fingerprint=fingerprint).write(out)
    result = out / "building" / "result.json"
    write_json(result, {**read_json(result), "fingerprint": fingerprint})


def written(out: Path, *names: str) -> dict[Path, int]:
    """When each shard was written, in nanoseconds."""
    return {path: path.stat().st_mtime_ns for name in names for path in parts(out / name)}


@pytest.mark.parametrize("exact_below", [0, 1000])
def test_an_index_of_an_earlier_version_is_made_anew_from_its_embeddings(
    encoder_folder: Path, tmp_path: Path, exact_below: int
) -> None:
    pool = write_pool(tmp_path / "pool.csv", grammar_captions(400))
    config = config_for(encoder_folder, pool, keep_embeddings=True, exact_below=exact_below, bytes_per_caption=4)
    out = tmp_path / "index"
    version = execute("index", config, out).manifest.version
    whole = content(out)
    make_older(out)
    assert search(out, ["a photo of a dog"], min_similarity=-1, limit=1)[0].results, "it is searched as it is"
    before, file = written(out, "captions", "image_rows", "embeddings"), (out / "caption.index").stat().st_mtime_ns
    # Killed while it is made anew, it goes on.
    assert run_build(config, out, 2) == -signal.SIGKILL
    renewed = execute("index", config, out)
    assert (renewed.state, renewed.manifest.version) == ("done", version)
    assert written(out, "captions", "image_rows", "embeddings") == before
    assert (out / "caption.index").stat().st_mtime_ns != file
    assert content(out) == whole
    assert execute("index", config, out).state == "cached"


@pytest.mark.parametrize("changed", ["removed", "not kept", "other captions", "other settings"])
def test_an_index_of_an_earlier_version_that_cannot_be_made_anew_is_refused_and_kept(
    encoder_folder: Path, tmp_path: Path, changed: str
) -> None:
    captions = grammar_captions(60)
    pool = write_pool(tmp_path / "pool.csv", captions)
    config = config_for(encoder_folder, pool, keep_embeddings=changed != "not kept")
    out = tmp_path / "index"
    execute("index", config, out)
    make_older(out)
    if changed == "removed":
        remove(out, captions=[captions[3]])
    if changed == "other captions":
        write_pool(pool, captions[1:])
    if changed == "other settings":
        config = config_for(encoder_folder, pool, keep_embeddings=True, recall_target=0.5)
    before = written(out, "captions", "embeddings")
    with pytest.raises(OutputError, match="stage version") as caught:
        execute("index", config, out)
    assert "--force" in caught.value.hint
    assert ("removed" in caught.value.hint) == (changed == "removed")
    assert written(out, "captions", "embeddings") == before
    assert search(out, [captions[5]], limit=1)[0].results[0].caption == captions[5]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_compressed_build_killed_ten_times(encoder_folder: Path, tmp_path: Path) -> None:
    pools = [write_pool(tmp_path / f"pool-{n}.csv", grammar_captions(99_000)[n::4]) for n in range(4)]
    config = config_for(encoder_folder, *pools, keep_embeddings=True, exact_below=0, bytes_per_caption=8)
    execute("index", config, tmp_path / "whole")
    _kill_and_finish(config, tmp_path / "killed", 10, 12)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_nan_embeddings_stop_the_build_and_name_the_shard(encoder_folder: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.csv", grammar_captions(100))
    execute("index", config_for(encoder_folder, pool, keep_embeddings=True), tmp_path / "index")
    from cdkit.index.codes import inspect_shards, write_exact
    from cdkit.index.layout import choose_layout

    path = parts(tmp_path / "index" / "embeddings")[0]
    table = pq.read_table(path)
    vectors = np.array(table["embedding"].to_pylist(), dtype=np.float16)
    vectors[7, 3] = np.nan
    import pyarrow as pa

    broken = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float16()), vectors.shape[1])
    pq.write_table(table.set_column(1, "embedding", broken), path)
    shards = inspect_shards([path])
    with pytest.raises(InputError, match="part-00000"):
        write_exact(tmp_path / "x.index", choose_layout(100, vectors.shape[1]), shards)
    assert not (tmp_path / "x.index").exists()


def test_adding_brings_new_captions_and_rows_and_nothing_removed(encoder_folder: Path, tmp_path: Path) -> None:
    captions = grammar_captions(120)
    first, second = captions[:100], captions[80:]
    config = config_for(encoder_folder, write_pool(tmp_path / "first.csv", first))
    folder = tmp_path / "index"
    execute("index", config, folder)
    remove(folder, captions=[captions[0], captions[110]])
    more = write_pool(tmp_path / "second.csv", [*second, captions[0], captions[50]], first=1000)
    again = write_pool(tmp_path / "third.csv", second, first=1000)
    context = Context(LocalEngine(1))
    addition = _add(folder, config_for(encoder_folder, more), context)
    # 100..119 are new but for 110, which was removed; rows of 80..99 and of 50 come on top.
    assert (addition.captions, addition.rows) == (19, 19 + 20 + 1)
    for text in (captions[105], captions[99], captions[50]):
        assert search(folder, [text], limit=1)[0].results[0].caption == text
    for text in (captions[0], captions[110]):
        assert text not in [match.caption for match in search(folder, [text], limit=3)[0].results]
    [shared] = search(folder, [captions[99]], limit=1)
    assert {row["url"] for row in shared.results[0].rows} == {"http://host/99.jpg", "http://host/1019.jpg"}
    assert _add(folder, config_for(encoder_folder, more), context).already
    repeated = _add(folder, config_for(encoder_folder, again), context)
    assert (repeated.captions, repeated.rows) == (0, 0)
    assert open_index(folder).faiss.count == 100 - 1 + 19
    assert sum(len(table) for table in iterate_captions(folder)) == 100 - 1 + 19
    assert sum(len(table) for table in iterate_image_rows(folder)) == 99 + 40
    assert execute("index", config, folder).state == "cached"


def test_an_add_that_was_interrupted_goes_on(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = grammar_captions(60)
    folder = tmp_path / "index"
    execute("index", config_for(encoder_folder, write_pool(tmp_path / "a.csv", captions[:40])), folder)
    before = json.loads((folder / "manifest.json").read_text())
    config = config_for(encoder_folder, write_pool(tmp_path / "b.csv", captions[40:], first=40))
    from cdkit.index.changes import add as addition

    with monkeypatch.context() as patched:
        patched.setattr(addition, "rewrite_index", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _add(folder, config, Context(LocalEngine(1)))
    assert json.loads((folder / "manifest.json").read_text()) == before
    assert open_index(folder).faiss.count == 40
    embedded = parts(folder / "adding" / "new" / "embeddings")[0]
    stamp = embedded.stat().st_ino
    with monkeypatch.context() as patched:
        patched.setattr(addition, "_shard_counts", _checked(addition._shard_counts, embedded, stamp))
        assert _add(folder, config, Context(LocalEngine(1))).captions == 20
    assert open_index(folder).faiss.count == 60
    assert not (folder / "adding").exists()


def _checked(function, path: Path, inode: int):  # type: ignore[no-untyped-def]
    def check(*arguments):  # type: ignore[no-untyped-def]
        assert path.stat().st_ino == inode
        return function(*arguments)

    return check


def test_a_full_disk_while_adding_is_an_output_error_and_loses_nothing(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = grammar_captions(60)
    folder = tmp_path / "index"
    execute("index", config_for(encoder_folder, write_pool(tmp_path / "a.csv", captions[:40])), folder)
    config = config_for(encoder_folder, write_pool(tmp_path / "b.csv", captions[40:]))
    import faiss

    def full(*_: object) -> None:
        raise RuntimeError("Error: 'ret == (size)' failed: write error: 12 != 60 (No space left on device)")

    with monkeypatch.context() as patched:
        patched.setattr(faiss, "write_index", full)
        with pytest.raises(OutputError, match="disk is full"):
            _add(folder, config, Context(LocalEngine(1)))
    assert open_index(folder).faiss.count == 40
    assert _add(folder, config, Context(LocalEngine(1))).captions == 20


def test_an_old_faiss_is_named_by_the_build_and_by_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    import faiss

    from cdkit.cli.doctor import _packages
    from cdkit.core.errors import ConfigError
    from cdkit.index.faiss_index import require_faiss

    require_faiss()
    monkeypatch.setattr(faiss, "__version__", "1.13.2")
    with pytest.raises(ConfigError, match=r"faiss 1\.13\.2 is too old"):
        require_faiss()
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.14.0")
    checks = {check.name: check for check in _packages()}
    assert (checks["faiss-cpu"].state, checks["torch"].state) == ("failed", "ok")
    assert "1.15" in checks["faiss-cpu"].advice
