"""Waves, retries, reconciliation and resuming, around a program that stands in for img2dataset."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cdkit.core.errors import CdkitError, ConfigError, NetworkError, OutputError, ResourceError
from cdkit.core.protocols import Context
from cdkit.core.storage import Folder
from cdkit.engines.local import LocalEngine
from cdkit.fetching import batches
from cdkit.fetching.batches import split_job
from cdkit.fetching.blocklist import Blocklist
from cdkit.fetching.job import ENDED_NAME, LOG_NAME, FetchedImage, FetchSettings, Job, read_wave
from cdkit.retrieval.accept import Downloaded, Limits
from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.download import download
from tests.retrieval.conftest import candidates_of
from tests.support.accept_all import AcceptAll, failures_of
from tests.support.progress import Notes


@pytest.fixture(autouse=True)
def _pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "PROGRAM", "tests.support.pretend_program")


def urls(*names: str) -> list[str]:
    return [f"http://host{number % 3}.test/{name}/{number}" for number, name in enumerate(names)]


def fetch(folder: Path, names: Sequence[str], context: Context, wanted: int = 100, **settings: float) -> Downloaded:
    chosen = FetchSettings(**settings)  # type: ignore[arg-type]
    return download(
        candidates_of(urls(*names)), Folder(folder), context, limits=Limits(wanted), settings=chosen, judge=AcceptAll()
    )


def kinds(done: Downloaded) -> dict[str, str]:
    ended = {candidate.caption: "fetched" for candidate, _ in done.accepted}
    return ended | {candidate.caption: failure.kind for candidate, failure in done.failed}


def test_what_img2dataset_loses_is_counted_as_lost(tmp_path: Path, context: Context) -> None:
    done = fetch(tmp_path, ["ok", "swallowed", "skipped", "torn", "404", "ok"], context)
    assert list(kinds(done).items()) == [
        *(("dog 0", "fetched"), ("dog 5", "fetched")),
        *(("dog 1", "lost"), ("dog 2", "lost"), ("dog 3", "lost"), ("dog 4", "http_404")),
    ]
    assert failures_of(done) == {"http_404": 1, "lost": 3}
    # What was skipped was no try, but it was given to img2dataset.
    assert (done.tried, done.fetched, done.exhausted) == (6, 2, True)


def test_only_what_can_change_is_tried_again(tmp_path: Path, context: Context) -> None:
    clock = time.monotonic()
    done = fetch(tmp_path, ["flaky", "404", "500", "reset", "ok"], context, retries=2)
    assert kinds(done) == {
        **{"dog 0": "fetched", "dog 4": "fetched"},
        **{"dog 1": "http_404", "dog 2": "http_5xx", "dog 3": "reset"},
    }
    tried = [Job.read(path).urls for path in sorted((tmp_path / "waves").iterdir())]
    assert [len(wave) for wave in tried] == [5, 3, 2]
    # One second, then two, before the next try.
    assert time.monotonic() - clock > 3


def test_waves_stop_when_enough_are_accepted(tmp_path: Path, context: Context) -> None:
    done = fetch(tmp_path, ["ok", "404"] * 100, context, wanted=20, survival=0.9)
    assert len(done.accepted) == 20
    assert [candidate.caption for candidate, _ in done.accepted] == [f"dog {number}" for number in range(0, 40, 2)]
    assert done.tried < 60
    assert not done.exhausted
    assert len(done.waves) >= 2
    content = done.accepted[3][1].content.read().decode()
    assert content == done.accepted[3][0].url


def test_a_rerun_fetches_nothing_and_a_larger_one_only_the_rest(tmp_path: Path, context: Context) -> None:
    names = ["ok", "404", "ok", "flaky"] * 20
    first = fetch(tmp_path, names, context, wanted=20)
    again = fetch(tmp_path, names, context, wanted=20)
    assert again.waves == []
    assert kinds(again) == kinds(first)
    more = fetch(tmp_path, names, context, wanted=55)
    seen = [url for path in sorted((tmp_path / "waves").iterdir()) for url in Job.read(path).urls]
    settled = [url for url in seen if "/flaky/" not in url]
    assert len(settled) == len(set(settled))
    assert [pair[0] for pair in more.accepted[:20]] == [pair[0] for pair in first.accepted]


def test_a_wave_without_an_end_is_taken_up_where_it_stood(tmp_path: Path, context: Context) -> None:
    fetch(tmp_path, ["ok", "ok", "404"], context)
    wave = tmp_path / "waves" / "00000"
    # As a killed run leaves it: no end recorded, the last image cut short, one URL on its way.
    (wave / ENDED_NAME).unlink()
    journal = next(wave.glob("journal-*"))
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps(event) + "\n" for event in events if event["event"] != "http_404"))
    image = sorted((wave / "images").rglob("*.jpg"))[1]
    image.write_bytes(image.read_bytes()[:3])
    assert [attempt.kind for attempt in read_wave(wave)] == ["fetched"]
    done = fetch(tmp_path, ["ok", "ok", "404"], context)
    assert kinds(done) == {"dog 0": "fetched", "dog 1": "fetched", "dog 2": "http_404"}
    assert len(Job.read(tmp_path / "waves" / "00001").urls) == 2


def test_a_wave_is_ended_at_its_bound_with_all_its_processes(
    tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "wave_bound", lambda *_: 8.0)
    done = fetch(tmp_path, ["ok", "hang", "404"], context, retries=0)
    assert kinds(done) == {"dog 0": "fetched", "dog 1": "timeout", "dog 2": "http_404"}
    assert done.waves[0].cause == "bound"
    sleeper = int((tmp_path / "waves" / "00000" / "sleeper").read_text())
    time.sleep(0.2)
    assert not os.path.exists(f"/proc/{sleeper}") or "Z" in Path(f"/proc/{sleeper}/stat").read_text().split()[2]


def test_a_crash_costs_only_what_was_on_its_way(tmp_path: Path, context: Context) -> None:
    done = fetch(tmp_path, ["ok", "crash", "404"], context)
    assert kinds(done) == {"dog 0": "fetched", "dog 1": "lost", "dog 2": "http_404"}
    assert [end.cause for end in done.waves] == ["crashed", "crashed", "finished"]


def test_a_program_that_cannot_run_is_an_error_with_its_words(tmp_path: Path, context: Context) -> None:
    with pytest.raises(CdkitError, match="no such thing") as caught:
        fetch(tmp_path, ["crash-at-once"], context)
    assert LOG_NAME in caught.value.hint


def test_waves_without_any_result_end_the_download(
    tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "wave_bound", lambda *_: 0.05)
    with pytest.raises(NetworkError):
        fetch(tmp_path, ["ok"], context)


def test_a_missing_network_settles_nothing(tmp_path: Path, context: Context) -> None:
    with pytest.raises(NetworkError, match="cannot be reached"):
        fetch(tmp_path, ["offline"] * 3, context)
    assert not list((tmp_path / "waves").iterdir())
    # Where one server answered, the others' names are simply gone; also in a later wave of nothing else.
    fetch(tmp_path, ["404"], context)
    some = fetch(tmp_path, ["404", "offline", "offline"], context)
    assert failures_of(some) == {"dns": 2, "http_404": 1}


def test_shards_keep_hosts_together_and_hashes_with_their_urls() -> None:
    given = [f"http://host{number % 5}.test/{number}" for number in range(23)]
    job = Job(FetchSettings(), tuple(given), {key: f"{key:032x}" for key in range(0, 23, 3)})
    for shards in (1, 2, 3, 9):
        parts = split_job(job, shards)
        assert len(parts) == min(shards, 5)
        assert sorted(url for part in parts for url in part.urls) == sorted(given)
        assert sum(len({url.split("/")[2] for url in part.urls}) for part in parts) == 5
        hashes = {part.urls[key]: text for part in parts for key, text in part.hashes.items()}
        assert hashes == {given[key]: text for key, text in job.hashes.items()}


def test_a_full_disk_settles_nothing(tmp_path: Path, context: Context) -> None:
    with pytest.raises(OutputError, match="full"):
        fetch(tmp_path, ["ok", "full"], context)
    assert [attempt.kind for attempt in read_wave(tmp_path / "waves" / "00000")] == ["fetched"]


def test_a_limit_on_memory_or_files_settles_nothing_either(tmp_path: Path, context: Context) -> None:
    with pytest.raises(ResourceError, match="another thread"):
        fetch(tmp_path / "memory", ["ok", "hungry"], context)
    with pytest.raises(OutputError, match="larger than it may"):
        fetch(tmp_path / "files", ["ok", "large"], context)
    assert [attempt.kind for attempt in read_wave(tmp_path / "files" / "waves" / "00000")] == ["fetched"]


def test_equal_urls_are_fetched_once_and_hopeless_ones_not_at_all(tmp_path: Path, context: Context) -> None:
    given = ["http://a.test/ok/1", "http://A.test:80/ok/1#again", "ftp://a.test/ok", None]
    limits = Limits(10)
    done = download(candidates_of(given), Folder(tmp_path), context, limits=limits, judge=AcceptAll())
    assert kinds(done) == {"dog 0": "fetched", "dog 1": "fetched", "dog 2": "scheme", "dog 3": "scheme"}
    assert len(Job.read(tmp_path / "waves" / "00000").urls) == 1


def test_an_escaped_url_is_asked_for_in_both_spellings_and_counts_once(tmp_path: Path, context: Context) -> None:
    given = [
        *("http://a.test/plain/1?x=1&amp;y=2", "http://b.test/written/2?x=1&amp;y=2"),
        *("http://c.test/neither/3?x=1&amp;y=2", "http://d.test/plain/4?x=1&y=2", "http://d.test/plain/4?x=1&#38;y=2"),
    ]
    candidates = candidates_of(given)
    done = download(candidates, Folder(tmp_path), context, limits=Limits(10), judge=AcceptAll())
    assert kinds(done) == {
        **{"dog 0": "fetched", "dog 1": "fetched", "dog 3": "fetched", "dog 4": "fetched"},
        "dog 2": "http_404",
    }
    assert (done.tried, done.fetched, failures_of(done)) == (5, 4, {"http_404": 1})
    # The pool's own spelling is what a set says of its images; one picture of two spellings is fetched once.
    assert [candidate.url for candidate, _ in done.accepted] == [given[0], given[1], given[3], given[4]]
    asked = [url for path in sorted((tmp_path / "waves").iterdir()) for url in Job.read(path).urls]
    assert len(asked) == len(set(asked)) == 6
    again = download(candidates, Folder(tmp_path), context, limits=Limits(10), judge=AcceptAll())
    assert again.waves == []
    assert kinds(again) == kinds(done)


def test_a_blocked_url_is_blocked_in_every_spelling(tmp_path: Path, context: Context) -> None:
    blocklist = Blocklist(urls=frozenset({"http://a.test/ok/1?x=1&y=2", "http://b.test/ok/2?x=1&amp;y=2"}))
    given = ["http://a.test/ok/1?x=1&amp;y=2", "http://b.test/ok/2?x=1&amp;y=2", "http://c.test/ok/3?x=1&amp;y=2"]
    done = download(
        candidates_of(given), Folder(tmp_path), context, limits=Limits(9), blocklist=blocklist, judge=AcceptAll()
    )
    assert kinds(done) == {"dog 2": "fetched", "dog 0": "blocklisted", "dog 1": "blocklisted"}


class OneInTwo(AcceptAll):
    """Turns down every second caption, and records what it was shown."""

    def __init__(self) -> None:
        self.prepared: list[str] = []

    def prepare(self, images: Sequence[tuple[Candidate, FetchedImage]]) -> None:
        self.prepared += [candidate.caption for candidate, _ in images]

    def admit(self, place: int, candidate: Candidate, image: FetchedImage) -> str | None:
        return "odd" if candidate.caption_id % 2 else None


def test_a_judge_sees_every_image_once_and_what_it_turns_down_is_made_up_for(tmp_path: Path, context: Context) -> None:
    judge = OneInTwo()
    candidates = candidates_of(urls(*["ok"] * 60))
    done = download(candidates, Folder(tmp_path), context, limits=Limits(12), judge=judge)
    assert [candidate.caption_id for candidate, _ in done.accepted] == list(range(0, 24, 2))
    assert [candidate.caption_id for candidate, _, reason in done.turned_down if reason == "odd"] == list(
        range(1, 23, 2)
    )
    assert len(judge.prepared) == len(set(judge.prepared)) == done.fetched


class ElsewhereEngine(LocalEngine):
    """An engine that is not this machine, as far as a download can tell."""

    name = "elsewhere"


def test_another_engine_runs_shards_and_the_parent_collects(tmp_path: Path) -> None:
    names = ["ok", "404", "ok", "ok", "404", "ok", "ok"]
    engine = ElsewhereEngine(1)
    engine.workers = 1
    done = fetch(tmp_path / "there", names, Context(engine))
    here = fetch(tmp_path / "here", names, Context(LocalEngine(1)))
    assert kinds(done) == kinds(here)
    assert [image.content.read() for _, image in done.accepted] == [image.content.read() for _, image in here.accepted]


def test_impossible_settings_and_a_proxy_are_said_first(tmp_path: Path, context: Context) -> None:
    with pytest.raises(ConfigError):
        fetch(tmp_path, ["ok"], context, deadline=0)
    assert not (tmp_path / "waves").exists()
    settings = FetchSettings(proxy="http://127.0.0.1:3128")
    download(candidates_of([None]), Folder(tmp_path), context, limits=Limits(1), settings=settings, judge=AcceptAll())
    assert isinstance(context.progress, Notes)
    assert "proxy" in context.progress.notes[0]
