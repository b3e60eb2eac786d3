"""Build an index over real captions with SIGKILL at random moments; compare it with a build that was left alone.

    python -m tests.index.kill_campaign [--kills 10] [--longest 25] [--seed 0] [--work FOLDER]

Prints one JSON object: runs, seconds, finished shards and blocks of embeddings that were made again (none should be),
and whether embeddings, FAISS file and search results are those of the build left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support import material

FINISHED = {
    "shards": (
        "buckets/part-*.arrow",
        "captions/part-*.parquet",
        "image_rows/part-*.parquet",
        "embeddings/part-*.parquet",
        "building/codes/part-*.safetensors",
    ),
    "blocks": ("embeddings/unfinished/*/part-*.parquet",),
}
QUERIES = ("a man riding a wave on a surfboard", "portrait of a young woman", "two dogs play in the snow")


def build_command(files: Sequence[Path], out: Path, further: Sequence[str] = ()) -> list[str]:
    """`cdkit index build` over caption tables of the test material, embeddings kept so that they can be compared."""
    captions = [word for path in files for word in ("--captions", str(path))]
    settings = ["--caption-column", "TEXT", "--encoder", "embedded", "--keep-embeddings", "--format", "json"]
    return [sys.executable, "-m", "cdkit", "index", "build", *captions, *settings, *further, "--out", str(out)]


def snapshot(out: Path, kind: str) -> dict[str, tuple[int, int]]:
    """What is finished, by name: inode and time of writing, which change when it is made again."""
    found = {}
    for pattern in FINISHED[kind]:
        for path in out.glob(pattern):
            status = path.stat()
            found[str(path.relative_to(out))] = (status.st_ino, status.st_mtime_ns)
    return found


def run_until_killed(command: list[str], out: Path, seconds: float | None) -> int:
    """Run `command`, killed `seconds` after it finished something new (None: never); returns its exit code.

    A run that is killed while it still starts tests little, and on a slow machine most random moments would be such.
    """
    before = {kind: snapshot(out, kind) for kind in FINISHED}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if seconds is not None and any(snapshot(out, kind) != before[kind] for kind in FINISHED):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=seconds)
            process.kill()
            break
        time.sleep(0.2)
    return process.wait()


def build_with_kills(command: list[str], out: Path, kills: int, longest: float, seed: int) -> dict[str, Any]:
    """Run `command` again and again, killed up to `longest` seconds into its work, until it may finish."""
    moments = random.Random(seed)
    ever: dict[str, dict[str, tuple[int, int]]] = {kind: {} for kind in FINISHED}
    repeated = dict.fromkeys(FINISHED, 0)
    ran: list[float] = []
    killed = 0
    while True:
        clock = time.monotonic()
        code = run_until_killed(command, out, moments.uniform(0, longest) if killed < kills else None)
        ran.append(round(time.monotonic() - clock, 1))
        for kind, seen in ever.items():
            now = snapshot(out, kind)
            repeated[kind] += sum(seen.get(name, mark) != mark for name, mark in now.items())
            seen.update(now)
        killed += code == -signal.SIGKILL
        state = {"killed": killed, "ran": ran[-1], **{kind: len(seen) for kind, seen in ever.items()}}
        print(json.dumps(state), file=sys.stderr, flush=True)
        if code != -signal.SIGKILL:
            break
    assert code == 0, f"the build ended with {code}"
    finished = {f"{kind}_seen_finished": len(seen) for kind, seen in ever.items()}
    again = {f"{kind}_made_again": number for kind, number in repeated.items()}
    return {"kills": killed, "seconds_with_kills": round(sum(ran), 1), "runs": ran, **finished, **again}


def digest(out: Path, pattern: str) -> str:
    """One hash over the content of the files that match."""
    total = hashlib.sha256()
    for path in sorted(out.glob(pattern)):
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def search_json(out: Path) -> Any:
    command = [sys.executable, "-m", "cdkit", "index", "search", str(out), *QUERIES, "--limit", "200"]
    found = subprocess.run([*command, "--format", "json"], check=True, capture_output=True, text=True)
    return json.loads(found.stdout)


def campaign(
    files: Sequence[Path], work: Path, *, kills: int, longest: float, seed: int, further: Sequence[str] = ()
) -> dict[str, Any]:
    """Both builds and their comparison."""
    alone, killed = work / "alone", work / "killed"
    facts = build_with_kills(build_command(files, killed, further), killed, kills, longest, seed)
    clock = time.monotonic()
    subprocess.run(build_command(files, alone, further), check=True, stdout=subprocess.DEVNULL)
    facts["seconds_alone"] = round(time.monotonic() - clock, 1)
    manifest = json.loads((killed / "manifest.json").read_text(encoding="utf-8"))
    return {
        "captions": manifest["details"]["captions"],
        **facts,
        "same_captions": digest(alone, "captions/*.parquet") == digest(killed, "captions/*.parquet"),
        "same_embeddings": digest(alone, "embeddings/*.parquet") == digest(killed, "embeddings/*.parquet"),
        "same_index": digest(alone, "caption.index") == digest(killed, "caption.index"),
        "same_search_results": search_json(alone) == search_json(killed),
        "factory": manifest["details"]["index"]["factory"],
        "recall": manifest["details"]["recall"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--longest", type=float, default=25.0, help="most seconds of work before a kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keep both indexes here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        files = material.caption_files()
        facts = campaign(files, work, kills=options.kills, longest=options.longest, seed=options.seed)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
