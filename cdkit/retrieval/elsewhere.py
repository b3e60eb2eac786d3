"""A wave on other machines: shards that each run the same guarded program, and come back as bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.protocols import Engine
from cdkit.retrieval.fetch_job import IMAGES_NAME, Job
from cdkit.retrieval.wave_run import WaveEnd, run_wave
from cdkit.retrieval.web_urls import host_of
from cdkit.storage import atomic_path


@dataclass(frozen=True)
class ShardResult:
    """A shard that was fetched on another machine: its folder's files by relative path, and how it ended."""

    files: dict[str, bytes]
    end: WaveEnd


def split(job: Job, shards: int) -> list[Job]:
    """The job in at most `shards` parts of about the same size; a host stays in one, so that its turns are kept."""
    hosts: dict[str, list[int]] = {}
    for key, url in enumerate(job.urls):
        hosts.setdefault(host_of(url), []).append(key)
    parts: list[list[int]] = [[] for _ in range(min(shards, len(hosts)))]
    for keys in sorted(hosts.values(), key=len, reverse=True):
        min(parts, key=len).extend(keys)
    return [_part(job, sorted(keys)) for keys in parts]


def _part(job: Job, keys: Sequence[int]) -> Job:
    hashes = {place: job.hashes[key] for place, key in enumerate(keys) if key in job.hashes}
    return replace(job, urls=tuple(job.urls[key] for key in keys), hashes=hashes)


def fetch_shard(job: Job) -> ShardResult:
    """Run the guarded program on local disk, wherever this is called, and hand over what it wrote."""
    with tempfile.TemporaryDirectory(prefix="cdkit-fetch-") as scratch:
        folder = Path(scratch) / "wave"
        end = run_wave(folder, job)
        # img2dataset's own notes are left behind: the journal and the images say it all.
        images = (folder / IMAGES_NAME).rglob("*.jpg")
        paths = [path for path in (*folder.iterdir(), *images) if path.is_file()]
        return ShardResult({str(path.relative_to(folder)): path.read_bytes() for path in paths}, end)


def fetch_elsewhere(engine: Engine, jobs: Sequence[Job], folders: Sequence[Path]) -> Iterator[WaveEnd]:
    """Run one shard per job on the engine's workers and put each result into its folder, whole or not at all."""
    outcomes = engine.map(fetch_shard, jobs, label="fetch")
    for outcome, folder in zip(outcomes, folders, strict=True):
        if isinstance(outcome.error, CdkitError):
            raise outcome.error
        if outcome.value is None:
            # The machine is gone, and what it fetched with it: its URLs are tried again.
            yield WaveEnd("crashed", len(outcome.item.urls), 0.0, 0.0)
            continue
        with atomic_path(folder) as temporary:
            for name, content in outcome.value.files.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        yield outcome.value.end
