"""The download: candidates fetched in batches until enough images are accepted; killed and run again, it goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from cdkit.core.errors import NetworkError
from cdkit.core.formatting import without_credentials
from cdkit.core.protocols import Context, Task
from cdkit.core.storage import Folder
from cdkit.fetching.batches import WaveEnd, fetch_on_engine, run_wave, split_job, spread_hosts, wave_size
from cdkit.fetching.blocklist import Blocklist, blocked_url
from cdkit.fetching.failures import HOST_FAILURES, FetchFailure
from cdkit.fetching.job import (
    Attempt,
    FailedFetch,
    FetchedImage,
    FetchSettings,
    Job,
    Waiting,
    read_wave,
    settle,
)
from cdkit.fetching.urls import WebUrl, spellings
from cdkit.retrieval.accept import Downloaded, Judge, Limits, Standing, stand
from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.decisions import BY_HAND, Decisions

# Waves in a row that may end without a single result before the network is given up.
MAX_EMPTY_WAVES = 3
# md5 or sha256; anything else in the pool's column says nothing about the bytes.
_HASH = re.compile(r"[0-9a-fA-F]{32}([0-9a-fA-F]{32})?")
# EAI_AGAIN and ENETUNREACH, as Python writes them.
_OFFLINE = ("[Errno -3]", "[Errno 101]")


def download(
    candidates: Sequence[Candidate],
    folder: Folder,
    context: Context,
    *,
    limits: Limits,
    judge: Judge,
    settings: FetchSettings | None = None,
    blocklist: Blocklist | None = None,
    decisions: Decisions | None = None,
) -> Downloaded:
    """Fetch candidates in order until `limits.wanted` images are accepted or no candidate is left.

    blocklist: URLs that are never asked for, and hashes of bytes that are never written; decisions: whose rejected
    URLs are not asked for again. `folder` keeps every finished
    image and settled failure: the same call fetches nothing twice. What is accepted depends on the candidates and on
    what their URLs hold, never on timing. Raises ConfigError for impossible settings, OutputError when the disk is
    full, NetworkError when nothing can be fetched at all.
    """
    settings = settings or FetchSettings()
    settings.check()
    if settings.proxy is not None:
        context.progress.note(
            f"Everything is fetched through the proxy {without_credentials(settings.proxy)}: checking where names "
            "lead is now its duty."
        )
    refusals = blocklist or Blocklist(), decisions or Decisions()
    return _Download(candidates, folder.sub("waves"), context, limits, settings, judge, *refusals).run()


def _says_offline(attempt: Attempt) -> bool:
    """Whether an attempt failed for want of a network here, not because of the URL."""
    return attempt.kind in ("dns", "refused") and any(mark in attempt.detail for mark in _OFFLINE)


@dataclass
class _Download:
    """One download on its way: what is known of every candidate, by its place in the order."""

    candidates: Sequence[Candidate]
    folder: Folder
    context: Context
    limits: Limits
    settings: FetchSettings
    judge: Judge
    blocklist: Blocklist
    decisions: Decisions
    outcomes: dict[int, FetchedImage | FailedFetch] = field(default_factory=dict)
    waiting: dict[int, float] = field(default_factory=dict)
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    urls: dict[int, WebUrl] = field(default_factory=dict)
    other_spellings: dict[int, list[WebUrl]] = field(default_factory=dict)
    places: dict[str, list[int]] = field(default_factory=dict)
    waves: list[WaveEnd] = field(default_factory=list)

    def __post_init__(self) -> None:
        """What needs no network: candidates without a usable URL fail; equal URLs are fetched once."""
        for place, candidate in enumerate(self.candidates):
            try:
                forms = spellings(candidate.url or "")
            except FetchFailure as failure:
                self.outcomes[place] = FailedFetch(candidate.url, failure.kind, detail=failure.detail)
                continue
            blocked = next((url.text for url in forms if url.text in self.blocklist.urls), None)
            if blocked is not None:
                self.outcomes[place] = blocked_url(blocked)
                continue
            if self.decisions.refuse(candidate.url):
                self.outcomes[place] = FailedFetch(candidate.url, BY_HAND)
                continue
            self.urls[place], self.other_spellings[place] = forms[0], forms[1:]
            for url in forms:
                self.places.setdefault(url.text, []).append(place)

    def run(self) -> Downloaded:
        finished = [self.folder / name for name in self.folder.entries() if name.isdigit()]
        self._learn([attempt for path in finished for attempt in read_wave(path)])
        empty = 0
        with self.context.progress.task("fetch", None, unit="URL") as task:
            while True:
                standing = stand(self.candidates, self.outcomes, self.judge.admission(), self.limits)
                if standing.complete:
                    break
                chosen = self._next(standing)
                if not chosen:
                    time.sleep(max(0.0, min(self.waiting[place] for place in standing.undecided) - time.time()))
                    continue
                empty = 0 if self._fetch(chosen, task) else empty + 1
                if empty >= MAX_EMPTY_WAVES:
                    raise NetworkError(
                        f"{empty} waves in a row ended without a single result.",
                        hint="The machine is too busy, or out of memory; what was fetched before is kept.",
                    )
        tried = {place for url in self.attempts for place in self.places.get(url, [])}
        return Downloaded.of(
            self.candidates,
            self.outcomes,
            standing,
            self.limits,
            tried=len(tried),
            fetched=sum(isinstance(self.outcomes.get(place), FetchedImage) for place in tried),
            waves=self.waves,
        )

    def _next(self, standing: Standing) -> list[int]:
        """Places to fetch now: retries that are due, and as many untried ones as it takes."""
        now = time.time()
        retries = [place for place in standing.undecided if 0 < self.waiting.get(place, 0) <= now]
        untried = [place for place in standing.undecided if place not in self.waiting]
        missing = self.limits.wanted - len(standing.accepted)
        tried = sum(place in self.outcomes or place in self.waiting for place in self.urls)
        size = wave_size(missing, tried=tried, accepted=len(standing.accepted), survival=self.settings.survival)
        # What stands before the last image needed decides the result even when enough are accepted after it.
        before = [place for place in untried if standing.accepted and place < standing.accepted[-1]]
        return sorted({*retries, *untried[: max(size, len(before))]})

    def _fetch(self, chosen: Sequence[int], task: Task) -> int:
        """One batch; returns how many URLs came to an end in it."""
        first = {self.urls[place].text: place for place in reversed(chosen)}
        ordered = spread_hosts(sorted(first.values()), [self.urls[place].host for place in sorted(first.values())])
        urls = tuple(self.urls[place].text for place in ordered)
        hashes = {
            key: text
            for key, place in enumerate(ordered)
            if _HASH.fullmatch(text := (self.candidates[place].md5 or "").strip())
        }
        job = Job(self.settings, urls, hashes, self.blocklist.exact())
        on_engine = self.context.engine.name != "local"
        jobs = split_job(job, self.context.engine.workers) if on_engine else [job]
        done = max((int(name) for name in self.folder.entries() if name.isdigit()), default=-1) + 1
        folders = [self.folder / f"{number:05d}" for number in range(done, done + len(jobs))]
        if on_engine:
            for end in fetch_on_engine(self.context.engine, jobs, folders):
                self.waves.append(end)
                task.advance(end.urls)
        else:
            self.waves.append(run_wave(folders[0], job, task.advance))
        attempts = [attempt for path in folders for attempt in read_wave(path)]
        answered = any(attempt.status for tries in self.attempts.values() for attempt in tries)
        if attempts and not answered and all(map(_says_offline, attempts)):
            # Nothing is settled by it: the same command goes on when the network is back.
            self.folder.remove([path.name for path in folders])
            raise NetworkError(
                f"The network cannot be reached: {attempts[0].detail}.",
                hint="Check the connection (and name servers), then run the same command again.",
            )
        self._learn(attempts)
        return len(attempts)

    def _learn(self, attempts: Sequence[Attempt]) -> None:
        """Take in attempts and settle their URLs."""
        touched: set[int] = set()
        for attempt in attempts:
            self.attempts.setdefault(attempt.url, []).append(attempt)
            touched.update(self.places.get(attempt.url, []))
        images = []
        for place in sorted(touched - self.outcomes.keys()):
            self.waiting.pop(place, None)
            verdict = self._verdict(place)
            if isinstance(verdict, Waiting):
                if verdict.due:
                    self.waiting[place] = verdict.due
                continue
            self.outcomes[place] = verdict
            if isinstance(verdict, FetchedImage):
                images.append((self.candidates[place], verdict))
        if images:
            self.judge.prepare(images)

    def _verdict(self, place: int) -> FetchedImage | FailedFetch | Waiting:
        """What the attempts amount to; a URL that failed gives way to its other spelling, if it has one."""
        while True:
            verdict = settle(self.attempts.get(self.urls[place].text, []), self.settings.retries)
            final = not isinstance(verdict, FailedFetch) or verdict.kind in HOST_FAILURES
            if final or not self.other_spellings[place]:
                return verdict
            self.urls[place] = self.other_spellings[place].pop(0)
