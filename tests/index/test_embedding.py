from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from cdkit.core.errors import InputError
from cdkit.core.protocols import Context, Task
from cdkit.core.shards import finished_facts, part_name, parts, schema, write_shard
from cdkit.core.storage import Folder
from cdkit.core.text import caption_id
from cdkit.encoders import load_text_encoder
from cdkit.encoders.batches import BATCHING
from cdkit.encoders.tokenizing import Tokenizer
from cdkit.engines import create_engine
from cdkit.index import shard_progress, token_feed
from cdkit.index.embedding import embed_captions, shard_fingerprint
from cdkit.index.token_feed import Piece
from tests.support import tiny_models

SHARDS, ROWS = 3, 300


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"open_clip:{tiny_models.open_clip_folder(tmp_path_factory.mktemp('model') / 'tiny', width=32, heads=2)}"


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return write_captions(tmp_path / "captions", SHARDS, ROWS)


def write_captions(folder: Path, shards: int, rows: int) -> Path:
    folder.mkdir()
    for shard in range(shards):
        texts = [" ".join(f"w{shard}{i % 97}" for _ in range(1 + i * 7 % 40)) + f" {i}" for i in range(rows)]
        table = pa.table(
            [pa.array([caption_id(text) for text in texts]), pa.array(texts), pa.array([1] * rows, pa.int32())],
            schema=schema("captions"),
        )
        write_shard(folder / part_name(shard), table.sort_by("caption_id"), fingerprint="test")
    return folder


def context(progress: object = None) -> Context:
    engine = create_engine("local", 2)
    return Context(engine=engine, progress=progress) if progress else Context(engine=engine)  # type: ignore[arg-type]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in parts(folder)}


def test_every_caption_has_its_embedding(spec: str, captions: Path, out: Path) -> None:
    dataset = embed_captions(captions, Folder(out), spec, context=context())
    encoder = load_text_encoder(spec)
    for source in parts(captions):
        texts, found = pq.read_table(source), pq.read_table(out / source.name)
        assert found.schema.field("embedding").type == pa.list_(pa.float16(), 32)
        assert found["caption_id"].equals(texts["caption_id"])
        vectors = np.stack(found["embedding"].to_numpy())
        assert np.abs(vectors - encoder.encode(texts["caption"].to_pylist())).max() < 1e-3
    assert dataset.counts.as_json() == {"in": SHARDS * ROWS, "kept": SHARDS * ROWS, "rejected": {}}
    assert dataset.details["encoder"] == {
        "spec": spec,
        "weights": encoder.weights_hash(),
        "encoding": 2,
        "dimension": 32,
        "context_length": 77,
        "default_threshold": 0.85,
        "precision": "fp32",
        "precision_error": 0.0,
    }
    facts = [fact for path in parts(out) if (fact := finished_facts(path, fingerprint(captions, path.name, encoder)))]
    assert len(facts) == SHARDS
    assert sum(fact["truncated"] for fact in facts) == dataset.details["truncated"] > 0


def fingerprint(captions: Path, name: str, encoder: object) -> str:
    return shard_fingerprint(captions / name, encoder.weights_hash(), "fp32")  # type: ignore[attr-defined]


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BATCHING, "cpu", replace(BATCHING["cpu"], window=128))


def test_windows_do_not_depend_on_row_groups(spec: str, captions: Path, tmp_path: Path, small_windows: None) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in parts(captions):
        pq.write_table(pq.read_table(path), other / path.name, row_group_size=50)
    tables = []
    for folder in (captions, other):
        embed_captions(folder, Folder(tmp_path / f"out-{folder.name}"), spec, context=context())
        tables.append([pq.read_table(path) for path in parts(tmp_path / f"out-{folder.name}")])
    assert all(a.equals(b) for a, b in zip(*tables, strict=True))


def test_a_rerun_does_only_what_is_missing(spec: str, captions: Path, out: Path) -> None:
    embed_captions(captions, Folder(out), spec, context=context())
    first = bytes_of(out)
    times = {path.name: path.stat().st_mtime_ns for path in parts(out)}
    (out / part_name(1)).write_bytes(b"cut short")
    embed_captions(captions, Folder(out), spec, context=context())
    assert bytes_of(out) == first
    changed = {path.name for path in parts(out) if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {part_name(1)}


def test_an_interrupted_shard_goes_on_after_its_last_window(
    spec: str, captions: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_windows: None
) -> None:
    embed_captions(captions, Folder(tmp_path / "whole"), spec, context=context())
    tokenise = token_feed.tokenise
    asked: list[Piece] = []

    def until(most: int) -> object:
        def tokenise_some(piece: Piece, tokenizer: Tokenizer) -> object:
            if len(asked) == most:
                raise KeyboardInterrupt
            asked.append(piece)
            return tokenise(piece, tokenizer)

        return tokenise_some

    # Three windows of 100 captions in each of three shards.
    monkeypatch.setattr(token_feed, "tokenise", until(6))
    with pytest.raises(KeyboardInterrupt):
        embed_captions(captions, Folder(out), spec, context=context())
    assert [(piece.start, piece.stop) for piece in asked] == [(0, 100), (100, 200), (200, 300)] * 2
    assert [path.name for path in parts(out)] == [part_name(0)]
    before = len(asked)
    monkeypatch.setattr(token_feed, "tokenise", until(99))
    embed_captions(captions, Folder(out), spec, context=context())
    # At most the window under way and the one that waited to be written are embedded twice.
    assert 3 <= len(asked) - before <= 5
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert sorted(path.name for path in out.iterdir()) == [part_name(n) for n in range(SHARDS)]


def test_other_captions_or_weights_are_embedded_again(spec: str, captions: Path, out: Path, tmp_path: Path) -> None:
    embed_captions(captions, Folder(out), spec, context=context())
    before = bytes_of(out)
    table = pq.read_table(captions / part_name(0))
    write_shard(captions / part_name(0), table.slice(0, 10), fingerprint="other")
    (captions / part_name(2)).unlink()
    embed_captions(captions, Folder(out), spec, context=context())
    after = bytes_of(out)
    assert set(after) == {part_name(0), part_name(1)}
    assert after[part_name(1)] == before[part_name(1)]
    assert pq.read_metadata(out / part_name(0)).num_rows == 10
    other = tiny_models.open_clip_folder(tmp_path / "other", seed=1, width=32, heads=2)
    embed_captions(captions, Folder(out), f"open_clip:{other}", context=context())
    assert bytes_of(out)[part_name(1)] != after[part_name(1)]


def test_broken_weights_stop_the_shard(spec: str, captions: Path, out: Path, tmp_path: Path) -> None:
    folder = tiny_models.open_clip_folder(tmp_path / "broken", width=32, heads=2)
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["text.token_embedding.weight"][320 + 256 :] = float("nan")
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(InputError, match=r"part-00000.*broken.*NaN"):
        embed_captions(captions, Folder(out), f"open_clip:{folder}", context=context())
    assert sorted(out.iterdir()) == []


def test_damaged_and_missing_captions(spec: str, captions: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no captions"):
        embed_captions(tmp_path / "nothing", Folder(out), spec, context=context())
    data = (captions / part_name(1)).read_bytes()
    (captions / part_name(1)).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="part-00001"):
        embed_captions(captions, Folder(out), spec, context=context())
    pq.write_table(pa.table({"caption_id": [1]}), captions / part_name(1))
    with pytest.raises(InputError, match="part-00001"):
        embed_captions(captions, Folder(out), spec, context=context())


def test_an_empty_shard(spec: str, tmp_path: Path, out: Path) -> None:
    folder = write_captions(tmp_path / "empty", 1, 0)
    assert embed_captions(folder, Folder(out), spec, context=context()).counts.read == 0
    assert pq.read_table(out / part_name(0)).num_rows == 0


class Recorder:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.total: float | None = None
        self.notes: list[str] = []

    @contextmanager
    def task(self, label: str, total: float | None, *, unit: str = "") -> Iterator[Task]:
        self.total = total
        yield self

    def advance(self, amount: float = 1) -> None:
        self.steps.append(amount)

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_progress_moves_inside_a_shard(spec: str, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_progress, "WRITE_SECONDS", 0.0)
    monkeypatch.setattr(shard_progress, "READ_SECONDS", 0.01)
    progress = Recorder()
    embed_captions(write_captions(tmp_path / "one", 1, 3000), Folder(out), spec, context=context(progress))
    assert progress.total == sum(progress.steps) == 3000
    assert len(progress.steps) > 2
    assert any("truncated" in note for note in progress.notes)
    assert [path.name for path in out.iterdir()] == [part_name(0)]


KILLED = """
import sys
from pathlib import Path
from cdkit.engines import create_engine
from cdkit.index.embedding import embed_captions
from cdkit.core.protocols import Context
from cdkit.core.storage import Folder
captions, out, spec = sys.argv[1:]
embed_captions(Path(captions), Folder(Path(out)), spec, context=Context(engine=create_engine("local", 1)))
"""


@pytest.mark.slow
def test_killed_anywhere_it_continues(spec: str, tmp_path: Path, out: Path) -> None:
    captions = write_captions(tmp_path / "captions", 6, 2000)
    done: dict[str, int] = {}
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(captions), str(out), spec])
        wanted = len(done) + 1
        while process.poll() is None and len(parts(out)) < wanted:
            time.sleep(0.02)
        time.sleep(0.05 * attempt)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        now = {path.name: path.stat().st_mtime_ns for path in parts(out)}
        assert done.items() <= now.items()  # no finished shard was made again
        done = now
    Folder(out).remove_temporaries()
    embed_captions(captions, Folder(out), spec, context=context())
    embed_captions(captions, Folder(tmp_path / "whole"), spec, context=context())
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


@pytest.mark.slow
def test_ray_gives_the_same_embeddings(spec: str, captions: Path, out: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    embed_captions(captions, Folder(out), spec, context=context())
    engine = create_engine("ray", 2)
    embed_captions(captions, Folder(tmp_path / "ray"), spec, context=Context(engine=engine))
    assert bytes_of(out) == bytes_of(tmp_path / "ray")
