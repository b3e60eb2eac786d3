"""Killed at any moment and run again: the same bytes, and nothing that was finished is done twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdkit.captions import importing as import_captions
from cdkit.core.manifest import read_manifest
from cdkit.core.shards import read_parts
from cdkit.execute import execute
from tests.captions.running import content, laion_rows

PROGRAM = """
import sys
from pathlib import Path
from cdkit.captions import importing as module
from cdkit.execute import execute
module.BYTES_PER_SHARD = 8_000
if __name__ == "__main__":
    config = module.ImportConfig(captions=[sys.argv[1]], workers=int(sys.argv[3]))
    print("started", flush=True)
    execute("import", config, Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    for part in range(6):
        pq.write_table(pa.table(laion_rows(4_000, part * 3000)), folder / f"{part}.parquet")
    return folder


@pytest.fixture(scope="module")
def whole(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], str, float]:
    """What an undisturbed import writes, its fingerprint, and the seconds it takes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_captions, "BYTES_PER_SHARD", 8_000)
        result = execute("import", import_captions.ImportConfig(captions=[str(pool)], workers=1), out)
    assert len(list((out / "captions").glob("part-*"))) >= 16
    return content(out), result.manifest.fingerprint, result.seconds


def finished_times(out: Path) -> dict[Path, int]:
    """Shards that are done, with the time they were written: both tables of phase two, rejects of phase one."""
    names = {path.name for path in (out / "captions").glob("part-*")}
    both = [out / kind / name for kind in ("captions", "image_rows") for name in names]
    return {path: path.stat().st_mtime_ns for path in [*both, *(out / "rejects").glob("part-*")] if path.exists()}


def kill_and_rerun(pool: Path, out: Path, kills: int, seconds: float, seed: int, workers: int = 1) -> None:
    script = out.with_suffix(".py")
    script.write_text(PROGRAM)
    command = [sys.executable, str(script), str(pool), str(out), str(workers)]
    moments = random.Random(seed)
    before: dict[Path, int] = {}
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        now = finished_times(out)
        assert {path: now.get(path) for path in before} == before
        before = now
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    now = finished_times(out)
    assert {path: now.get(path) for path in before} == before


def test_killed_three_times(pool: Path, whole: tuple[dict[str, bytes], str, float], out: Path) -> None:
    bytes_before, fingerprint, seconds = whole
    kill_and_rerun(pool, out, 3, seconds, seed=1)
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest.fingerprint == fingerprint
    assert content(out) == bytes_before
    assert not list(out.rglob(".tmp-*"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_ten_times(pool: Path, whole: tuple[dict[str, bytes], str, float], out: Path) -> None:
    bytes_before, fingerprint, seconds = whole
    for seed in range(10):
        folder = out.with_name(f"out-{seed}")
        kill_and_rerun(pool, folder, 1, seconds, seed=seed + 10, workers=1 + seed % 2)
        manifest = read_manifest(folder)
        assert manifest is not None
        assert manifest.fingerprint == fingerprint
        assert content(folder) == bytes_before


def test_half_done_phases_are_continued(
    pool: Path, whole: tuple[dict[str, bytes], str, float], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped right after some files, then after some shards: only what is missing is made."""
    bytes_before, _, _ = whole
    monkeypatch.setattr(import_captions, "BYTES_PER_SHARD", 8_000)
    config = import_captions.ImportConfig(captions=[str(pool)], workers=1)
    for name, allowed in (("bucket_group", 2), ("deduplicate_shard", 5)):
        real = getattr(import_captions, name)
        calls: list[object] = []

        def stopping(
            item: object, job: object, real: object = real, calls: list[object] = calls, last: int = allowed
        ) -> object:
            if len(calls) == last:
                raise KeyboardInterrupt
            calls.append(item)
            return real(item, job=job)  # type: ignore[operator]

        monkeypatch.setattr(import_captions, name, stopping)
        with pytest.raises(KeyboardInterrupt):
            execute("import", config, out)
        monkeypatch.setattr(import_captions, name, real)
    assert len(list((out / "captions").glob("part-*"))) == 5
    # A shard that something else damaged is made again, together with nothing else.
    damaged = out / "captions" / "part-00002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet") if path.name != damaged.name}
    execute("import", config, out)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}
    assert {path: after[path] for path in before} == before
    assert content(out) == bytes_before
    assert sum(table.num_rows for table in read_parts(out / "image_rows")) == 24_000 - sum(
        table.num_rows for table in read_parts(out / "rejects")
    )
