"""Import of generated rows in LAION-400M's layout, against the same rows through one plain DuckDB GROUP BY.

`python -m tests.bench.bench_import --rows 10000000 --work /tmp/bench`; the two sides alternate `--rounds` times.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import duckdb
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from cdkit.core.formatting import json_text

WORDS = 20_000
DUPLICATE_SHARE = 0.3
NON_ASCII_SHARE = 0.03
SAMPLES_PER_SECOND = 20


def write_pool(folder: Path, rows: int, files: int) -> int:
    """Write `rows` rows in `files` parquet files; 30 % repeat an earlier caption. Returns the distinct captions."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(2021)
    distinct = rows - int(rows * DUPLICATE_SHARE)
    number = np.concatenate([np.arange(distinct), random.integers(0, distinct, rows - distinct)])
    random.shuffle(number)
    for index, part in enumerate(np.array_split(number, files)):
        pq.write_table(_table(part, index), folder / f"part-{index:05d}.parquet", compression="snappy")
    return distinct


def _table(number: np.ndarray, index: int) -> pa.Table:
    """The rows of one file: caption `number` has the same text wherever it appears."""
    seed = np.random.default_rng(100 + index)
    rows = len(number)
    side = seed.integers(64, 2000, (2, rows)).astype(np.int32)
    return pa.table(
        {
            "SAMPLE_ID": pa.array(seed.integers(0, 1 << 40, rows)),
            "URL": _urls(seed, rows),
            "TEXT": pa.chunked_array([_captions(part) for part in np.array_split(number, max(1, rows // 250_000))]),
            "HEIGHT": pa.array(side[0]),
            "WIDTH": pa.array(side[1]),
            "LICENSE": pa.array(["?"] * rows),
            "NSFW": pa.array(
                np.array(["UNLIKELY", "UNSURE", "NSFW"])[(seed.random(rows)[:, None] > [0.97, 0.99]).sum(1)]
            ),
            "similarity": pa.array(seed.uniform(0.3, 0.5, rows)),
        }
    )


def _captions(number: np.ndarray) -> pa.Array:
    """Captions of 4 to 16 words (67 characters on average, as LAION's); the number itself keeps them distinct."""
    vocabulary = np.random.default_rng(7)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(vocabulary.choice(list(letters), vocabulary.integers(2, 11))) for _ in range(WORDS)]
    words = [word.capitalize() if index % 4 == 0 else word for index, word in enumerate(words)]
    accented = [word + "é" if index % 2 else "“" + word + "”" for index, word in enumerate(words)]
    mixed = _mix(number)
    length = (4 + mixed % 13).astype(np.int32)
    picks = np.empty((len(number), 16), dtype=np.uint64)
    for column in range(16):
        mixed = _mix(mixed)
        picks[:, column] = mixed % WORDS
    foreign = _mix(number + 13) % 1000 < NON_ASCII_SHARE * 1000
    texts = []
    for row, count, special, own in zip(
        picks.tolist(), length.tolist(), foreign.tolist(), number.tolist(), strict=True
    ):
        chosen = [words[pick] for pick in row[:count]]
        if special:
            chosen[0] = accented[row[0]]
        chosen.append(str(own))
        texts.append(" ".join(chosen))
    return pa.array(texts)


def _mix(value: np.ndarray) -> np.ndarray:
    """splitmix64: the same bits for the same number, in every file."""
    with np.errstate(over="ignore"):
        value = value.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def _urls(seed: np.random.Generator, rows: int) -> pa.Array:
    hosts = [f"https://cdn{index}.example{index % 97}.com/images/" for index in range(5000)]
    host, path = seed.integers(0, len(hosts), rows).tolist(), seed.integers(0, 1 << 62, (2, rows)).tolist()
    return pa.array([f"{hosts[h]}{a:x}/{b:x}.jpg" for h, a, b in zip(host, path[0], path[1], strict=True)])


def run_import(pool: Path, out: Path, workers: int) -> dict[str, int]:
    """Import the pool with cdkit in this process and its workers; returns the counts that the peer must match."""
    from cdkit.captions.config import ImportConfig
    from cdkit.execute import execute

    config = ImportConfig(captions=[str(pool)], workers=workers, nsfw_limit="nsfw")
    result = execute("import", config, out)
    return {"captions": result.manifest.details["captions"], "rows": result.manifest.counts["kept"]}


def run_plain_duckdb(pool: Path, out: Path, workers: int) -> dict[str, int]:
    """The peer: one query that knows nothing of mojibake, entities, ratings, or partitions."""
    out.mkdir(parents=True)
    with duckdb.connect(config={"threads": workers, "temp_directory": str(out / "temp")}) as connection:
        connection.execute(
            f"""COPY (SELECT lower(TEXT) AS caption, min(URL) AS url, count(*) AS rows
            FROM read_parquet('{pool}/*.parquet') GROUP BY 1)
            TO '{out}/captions.parquet' (FORMAT parquet, COMPRESSION zstd)"""
        )
        found = connection.execute(f"SELECT count(*), sum(rows) FROM '{out}/captions.parquet'").fetchall()[0]
    return {"captions": int(found[0]), "rows": int(found[1])}


def measured(side: str, pool: Path, out: Path, workers: int) -> dict[str, float]:
    """Run one side in a process of its own: seconds of the work alone, peak memory of its whole process tree."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.bench_import",
        "--side",
        side,
        "--pool",
        str(pool),
        "--out",
        str(out),
    ]
    process = subprocess.Popen([*command, "--workers", str(workers)], stdout=subprocess.PIPE, text=True)
    peak = 0
    finished = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not finished.wait(1 / SAMPLES_PER_SECOND):
            peak = max(peak, _tree_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    finished.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{side} ended with {process.returncode}")
    return {**json.loads(output.splitlines()[-1]), "peak_bytes": peak}


def _tree_bytes(pid: int) -> int:
    """Resident memory of a process and all its descendants (shared pages counted once per process)."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
    except psutil.Error:
        return 0
    return total


def compare(work: Path, rows: int, files: int, rounds: int, workers: int) -> dict[str, object]:
    """Alternate the two sides; both have to find the same captions and rows."""
    pool = work / f"pool-{rows}-{files}"
    if not (pool / "distinct").exists():
        distinct = write_pool(pool, rows, files)
        (pool / "distinct").write_text(str(distinct))
    distinct = int((pool / "distinct").read_text())
    runs: dict[str, list[dict[str, float]]] = {"cdkit": [], "duckdb": []}
    for _ in range(rounds):
        for side, found in runs.items():
            out = work / f"out-{side}"
            shutil.rmtree(out, ignore_errors=True)
            found.append(measured(side, pool, out, workers))
            assert (found[-1]["captions"], found[-1]["rows"]) == (distinct, rows), (side, found[-1], distinct)
            print(side, found[-1], file=sys.stderr, flush=True)
            shutil.rmtree(out, ignore_errors=True)
    ours, peer = (median(run["seconds"] for run in runs[side]) for side in ("cdkit", "duckdb"))
    return {
        "rows": rows,
        "workers": workers,
        "seconds": round(ours, 2),
        "duckdb_seconds": round(peer, 2),
        "speed_vs_plain_duckdb": round(
            median(p["seconds"] / o["seconds"] for o, p in zip(*runs.values(), strict=True)), 3
        ),
        "peak_bytes": int(max(run["peak_bytes"] for run in runs["cdkit"])),
        "duckdb_peak_bytes": int(max(run["peak_bytes"] for run in runs["duckdb"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=None, help="where to write; a temporary folder when left out")
    parser.add_argument("--side", choices=["cdkit", "duckdb"], help=argparse.SUPPRESS)
    parser.add_argument("--pool", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        clock = time.monotonic()
        run = run_import if given.side == "cdkit" else run_plain_duckdb
        found = run(given.pool, given.out, given.workers)
        print(json_text({**found, "seconds": time.monotonic() - clock}))
        return
    if given.work is not None:
        print(json_text(compare(given.work, given.rows, given.files, given.rounds, given.workers)))
        return
    with tempfile.TemporaryDirectory() as work:
        print(json_text(compare(Path(work), given.rows, given.files, given.rounds, given.workers)))


if __name__ == "__main__":
    main()
