"""The guarded opener and the audit hook, without img2dataset."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cdkit.core.errors import ConfigError
from cdkit.fetching.batches import run_wave
from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.fetch import GuardedOpener
from cdkit.fetching.guard import Deadline
from cdkit.fetching.job import FetchSettings, Job, Journal, journal_events
from tests.support.hostile_server import Canary, HostileServer, SilentListener, picture


def opener(
    folder: Path, server: HostileServer, hashes: Mapping[int, str] | None = None, **values: Any
) -> GuardedOpener:
    folder.mkdir(exist_ok=True)
    chosen: dict[str, Any] = {"deadline": 1.5, "max_bytes": 1 << 20, "allow_hosts": (server.place,)} | values
    return GuardedOpener(Job(FetchSettings(**chosen), (), hashes or {}), Journal(folder))


def kind_of(guarded: GuardedOpener, url: str, key: int = 0) -> str:
    try:
        with guarded.open(urllib.request.Request(f"{url}#{key}")) as response:
            assert response.read()
            return "fetched"
    except FetchFailure as failure:
        return failure.kind


def test_every_fetch_is_journaled_once(tmp_path: Path, server: HostileServer) -> None:
    right = hashlib.sha256(picture("/ok/1")).hexdigest()
    guarded = opener(tmp_path, server, {1: right, 2: right})
    assert kind_of(guarded, server.url("ok/1"), 1) == "fetched"
    assert kind_of(guarded, server.url("ok/2"), 2) == "hash_mismatch"
    assert kind_of(guarded, server.url("404"), 3) == "http_404"
    assert kind_of(guarded, "http://10.0.0.1/", 4) == "blocked_address"
    events = [(event["key"], event["event"]) for event in journal_events(tmp_path) if event["event"] != "started"]
    assert events == [(1, "fetched"), (2, "hash_mismatch"), (3, "http_404"), (4, "blocked_address")]
    fetched = next(event for event in journal_events(tmp_path) if event["event"] == "fetched")
    assert (fetched["sha256"], fetched["bytes"], fetched["status"]) == (right, len(picture("/ok/1")), 200)


def test_a_journal_line_cut_short_is_left_out(tmp_path: Path) -> None:
    Journal(tmp_path).write(1, "started")
    with next(tmp_path.glob("journal-*")).open("a") as journal:
        journal.write('{"key": 2, "ev')
    assert [event["key"] for event in journal_events(tmp_path)] == [1]


@pytest.mark.parametrize("path", ["never", "drip-body", "drip-headers"])
def test_a_stalling_server_is_cut_off_at_the_deadline(tmp_path: Path, server: HostileServer, path: str) -> None:
    clock = time.monotonic()
    assert kind_of(opener(tmp_path, server, deadline=0.5), server.url(path)) == "timeout"
    assert 0.4 < time.monotonic() - clock < 3


def test_a_stalled_handshake_or_lookup_is_cut_off_too(tmp_path: Path, server: HostileServer) -> None:
    with SilentListener("127.0.0.1") as silent:
        place = f"127.0.0.1:{silent.port}"
        guarded = opener(tmp_path, server, deadline=0.5, allow_hosts=(place,), names={"stalled.test": []})
        clock = time.monotonic()
        assert kind_of(guarded, f"https://{place}/") == "timeout"
        assert kind_of(guarded, "http://stalled.test/") == "timeout"
        assert time.monotonic() - clock < 5
        assert silent.connections == 1


def test_an_untrusted_certificate_is_refused(tmp_path: Path, certificate: Path) -> None:
    with HostileServer(certificate=certificate) as server:
        assert kind_of(opener(tmp_path / "journal", server), f"https://{server.place}/ok/1") == "tls"


def test_redirects_are_checked_at_every_hop(tmp_path: Path, server: HostileServer) -> None:
    with Canary("127.0.0.9") as canary:
        guarded = opener(tmp_path, server, names={"inside.test": [["127.0.0.9", "10.0.0.1"]]})
        to = server.url("redirect?to=")
        assert kind_of(guarded, to + server.url("chain/3")) == "fetched"
        assert kind_of(guarded, to + server.url("chain/5")) == "redirect"
        assert kind_of(guarded, server.url("loop")) == "redirect"
        assert kind_of(guarded, f"{to}http://127.0.0.9/") == "blocked_address"
        assert kind_of(guarded, f"{to}http://127.0.0.9:{canary.port}/") == "port"
        assert kind_of(guarded, f"{to}http://inside.test/") == "blocked_address"
        assert kind_of(guarded, f"{to}file:///etc/passwd") == "scheme"
        assert kind_of(guarded, f"{to}//[broken/") in {"dns", "redirect"}
        assert canary.connections == 0


def test_a_name_is_looked_up_once_so_it_cannot_move(tmp_path: Path, server: HostileServer) -> None:
    port = server.place.split(":")[1]
    with Canary("127.0.0.9", int(port)) as canary:
        names = {"moving.test": [["127.0.0.1"], ["127.0.0.9"]]}
        guarded = opener(tmp_path, server, allow_hosts=(f"moving.test:{port}",), names=names)
        assert [kind_of(guarded, f"http://moving.test:{port}/ok/{number}") for number in range(3)] == ["fetched"] * 3
        assert canary.connections == 0


def test_what_is_no_part_of_the_job_is_not_fetched(tmp_path: Path, server: HostileServer) -> None:
    guarded = opener(tmp_path, server)
    for request in (server.url("ok/1"), server.url("ok/1#top"), urllib.request.Request(server.url("ok/1"))):
        with pytest.raises(FetchFailure):
            guarded.open(request)
    with pytest.raises(FetchFailure):
        guarded.open(server.url("ok/1#0"), data=b"posted")
    assert not server.hits


def test_one_host_is_asked_by_a_few_at_a_time(tmp_path: Path, server: HostileServer) -> None:
    guarded = opener(tmp_path, server, per_host=2, deadline=20.0)
    kinds: list[str] = []
    threads = [
        threading.Thread(target=lambda key=key: kinds.append(kind_of(guarded, server.url(f"slow/{key}"), key)))
        for key in range(8)
    ]
    clock = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds == ["fetched"] * 8
    # Eight times 0.2 s, two at a time.
    assert time.monotonic() - clock > 0.75


def test_a_host_that_hangs_does_not_keep_its_queue_beyond_the_deadline(tmp_path: Path, server: HostileServer) -> None:
    guarded = opener(tmp_path, server, per_host=1, deadline=4.0)
    first = threading.Thread(target=kind_of, args=(guarded, server.url("never"), 0))
    first.start()
    while not server.hits:
        time.sleep(0.01)
    clock = time.monotonic()
    assert kind_of(guarded, server.url("ok/1"), 1) == "timeout"
    assert 1.5 < time.monotonic() - clock < 4
    assert "/ok/1" not in server.hits
    first.join()


def test_a_host_that_is_only_busy_defers(tmp_path: Path, server: HostileServer) -> None:
    guarded = opener(tmp_path, server, per_host=1, deadline=2.0)
    kinds: list[str] = []
    threads = [
        threading.Thread(target=lambda key=key: kinds.append(kind_of(guarded, server.url(f"slow/{key}"), key)))
        for key in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Twelve times 0.2 s does not fit into the second that each may wait.
    assert set(kinds) == {"fetched", "deferred"}
    assert kinds.count("fetched") == len(server.hits)


def test_a_proxy_is_asked_instead_and_only_for_the_web(tmp_path: Path, server: HostileServer) -> None:
    guarded = opener(tmp_path, server, allow_hosts=(), proxy=f"http://{server.place}")
    # The server, asked as a proxy, gets the whole URL, and nobody looks up the name.
    assert kind_of(guarded, "http://images.test/ok/1") == "fetched"
    assert dict(server.hits) == {"http://images.test/ok/1": 1}
    assert kind_of(guarded, "http://10.0.0.1/") == "blocked_address"
    assert kind_of(guarded, "http://images.test:22/") == "port"


def test_a_deadline_ends_a_connection_that_waits() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, Deadline(0.2) as deadline:
        deadline.guard(ours)
        assert ours.recv(1) == b""
        assert deadline.expired
        with pytest.raises(TimeoutError):
            deadline.remaining()


def test_impossible_settings_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        FetchSettings(threads=64, retries=-1, proxy="socks5://a:1", user_agent="a\nb").check()
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError):
        FetchSettings(allow_hosts=("http://a",)).check()


GUARDED = """
import json, socket, sys, urllib.request
from cdkit.fetching import program
program.install()
address, port = sys.argv[1], int(sys.argv[2])
outcomes = []
for attempt in (
    lambda: socket.create_connection((address, port), timeout=2),
    lambda: socket.create_connection(("localhost", port), timeout=2),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (address, port)),
    lambda: socket.socket(socket.AF_UNIX).connect("/var/run/docker.sock"),
    lambda: urllib.request.urlopen("file:///etc/passwd#0"),
    lambda: urllib.request.urlopen(f"http://{address}:{port}/#0"),
    lambda: urllib.request.urlopen(f"http://{address}:{port}/"),
):
    try:
        attempt()
        outcomes.append("open")
    except Exception as error:
        outcomes.append(getattr(error, "kind", type(error).__name__))
print(json.dumps(outcomes))
"""


def test_nothing_in_a_guarded_process_gets_past_the_audit_hook(tmp_path: Path) -> None:
    Job(FetchSettings(), ()).write(tmp_path)
    with Canary("127.0.0.9") as canary:
        command = [sys.executable, "-c", GUARDED, "127.0.0.9", str(canary.port)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == [
            *("blocked_address", "blocked_address", "blocked_address", "blocked_address"),
            *("scheme", "port", "scheme"),
        ]
        assert canary.connections == 0


HUNGRY = """
import sys, urllib.request
from dataclasses import replace
from cdkit.fetching import program
settings = program.install()
program.MEMORY_BYTES = 64 << 20
program.bound_memory(replace(settings, threads=1, max_bytes=1))
try:
    urllib.request.urlopen(sys.argv[1])
except Exception as error:
    print(error)
"""


def test_what_a_fetching_process_may_take_is_bounded_and_the_reason_is_named(
    tmp_path: Path, server: HostileServer
) -> None:
    settings = FetchSettings(deadline=20.0, max_bytes=1 << 30, allow_hosts=(server.place,))
    Job(settings, ()).write(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HUNGRY, server.url("endless#0")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("memory: MemoryError")
    assert [event["event"] for event in journal_events(tmp_path)] == ["started", "memory"]


def test_a_proxys_password_stands_in_no_file(tmp_path: Path, server: HostileServer) -> None:
    proxy = f"http://user:secret@{server.place}"
    job = Job(FetchSettings(proxy=proxy), ("http://images.test/ok/1",))
    end = run_wave(tmp_path / "wave", job)
    assert end.cause == "finished"
    assert dict(server.hits) == {"http://images.test/ok/1": 1}
    written = [path for path in (tmp_path / "wave").rglob("*") if path.is_file()]
    assert len(written) > 3
    assert not any(b"secret" in path.read_bytes() for path in written)


@pytest.mark.parametrize(
    "proxy", ["socks5://user:secret@a:1", "http://user:secret@a", "http://user:secret@[a", "user:secret@a:1 http://"]
)
def test_a_proxy_that_is_refused_is_not_quoted_with_its_password(proxy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FetchSettings(proxy=proxy).check()
    assert "proxy: http://HOST:PORT" in str(caught.value)
    assert "secret" not in str(caught.value)
