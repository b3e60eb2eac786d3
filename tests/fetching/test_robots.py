"""robots.txt and ai.txt: the rules that hold for a URL, and that a host is asked for them once, behind the guard."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.fetching.robots import forbidding_rule
from tests.fetching.test_fetch import kind_of, opener
from tests.support.hostile_server import Canary, HostileServer

EVERYBODY = "User-agent: *\n"


@pytest.fixture(autouse=True)
def _own_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDKIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("text", "path", "forbidden"),
    [
        ("Disallow: /*.jpg$", "/a/b.jpg", True),
        ("Disallow: /*.jpg$", "/a/b.jpg?x=1", False),
        ("Disallow: *.jpg", "/a/b.jpg?x=1", True),
        ("Disallow: /", "/a", True),
        ("Disallow:", "/a", False),
        ("Disallow: images/", "/images/1", True),
        ("Disallow: /q?size=", "/q?size=9", True),
        ("Disallow: /caf%C3%A9/", "/caf%C3%A9/1", True),
        ("Disallow: /café/", "/caf%C3%A9/1", True),
        # The longest rule counts, and of two as long the one that allows.
        ("Disallow: /\nAllow: /img/", "/img/1", False),
        ("Disallow: /img/large/\nAllow: /img/", "/img/large/1", True),
        ("Allow: /img\nDisallow: /img", "/img/1", False),
    ],
)
def test_rules_are_those_of_rfc_9309(text: str, path: str, forbidden: bool) -> None:
    assert (forbidding_rule(EVERYBODY + text, path) is not None) is forbidden


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("User-agent: cdkit\nDisallow: /\n\nUser-agent: *\nAllow: /", True),
        ("User-agent: CDKit/1.0\nUser-agent: x\nDisallow: /", True),
        ("User-agent: img2dataset\nDisallow: /\n\nUser-agent: *\nAllow: /", True),
        ("User-agent: cdkit\nAllow: /\n\nUser-agent: *\nDisallow: /", False),
        ("User-agent: GPTBot\nDisallow: /", False),
        ("User-agent: kit\nDisallow: /", False),
        # Groups for everybody are one, and a byte order mark is none of the first line.
        ("\ufeffUser-agent: *\nDisallow: /x\n\nuser-agent : *\nDisallow: /", True),
        ("<html><body>Disallow: /</body></html>", False),
        ("", False),
    ],
)
def test_groups_are_those_for_cdkit_and_what_it_fetches_by(text: str, forbidden: bool) -> None:
    assert (forbidding_rule(text, "/img/1") is not None) is forbidden


@given(st.text("ab*", min_size=1, max_size=8), st.booleans(), st.text("ab/", max_size=10))
def test_patterns_match_as_they_are_described(pattern: str, ends: bool, path: str) -> None:
    pieces = ".*".join(map(re.escape, f"/{pattern}".split("*")))
    expected = re.match(f"{pieces}$" if ends else pieces, f"/{path}", re.DOTALL) is not None
    rule = f"/{pattern}{'$' if ends else ''}"
    assert (forbidding_rule(f"{EVERYBODY}Disallow: {rule}", f"/{path}") is not None) is expected


def test_a_pattern_made_to_take_for_ever_does_not() -> None:
    clock = time.process_time()
    forbidding_rule(f"{EVERYBODY}Disallow: /{'*a' * 200_000}b", "/" + "a" * 8000)
    assert time.process_time() - clock < 2


def test_what_a_host_forbids_is_not_asked_for(tmp_path: Path, server: HostileServer) -> None:
    server.rules["/robots.txt"] = (200, b"User-agent: *\nDisallow: /ok/no\n", {})
    server.rules["/ai.txt"] = (200, b"User-Agent: *\nDisallow: *.png\n", {})
    guarded = opener(tmp_path / "journal", server, respect_robots=True)
    assert kind_of(guarded, server.url("ok/1.jpg")) == "fetched"
    assert kind_of(guarded, server.url("ok/no.jpg")) == "robots"
    assert kind_of(guarded, server.url("ok/1.png")) == "ai_txt"
    assert kind_of(guarded, server.url(f"redirect?to={server.url('ok/no.jpg')}")) == "robots"
    assert not server.hits.keys() & {"/ok/no.jpg", "/ok/1.png"}
    # Nobody is asked who need not be.
    assert kind_of(opener(tmp_path / "other", server), server.url("ok/no.jpg")) == "fetched"


def test_a_host_is_asked_once_however_many_ask_and_whenever(tmp_path: Path, server: HostileServer) -> None:
    guarded = opener(tmp_path / "journal", server, respect_robots=True, deadline=10.0)
    with ThreadPoolExecutor(8) as threads:
        kinds = list(threads.map(lambda number: kind_of(guarded, server.url(f"slow/{number}"), number), range(8)))
    assert kinds == ["fetched"] * 8
    # The next wave is another process.
    assert kind_of(opener(tmp_path / "next", server, respect_robots=True), server.url("ok/9")) == "fetched"
    assert (server.hits["/robots.txt"], server.hits["/ai.txt"]) == (1, 1)


@pytest.mark.parametrize(
    ("status", "kind"), [(404, "fetched"), (403, "fetched"), (410, "fetched"), (503, "robots"), (429, "robots")]
)
def test_a_file_that_is_not_there_forbids_nothing_and_one_that_cannot_be_told_everything(
    tmp_path: Path, server: HostileServer, status: int, kind: str
) -> None:
    server.rules["/robots.txt"] = (status, b"User-agent: *\nDisallow: /\n", {})
    assert kind_of(opener(tmp_path / "journal", server, respect_robots=True), server.url("ok/1")) == kind


def test_the_files_are_fetched_behind_the_same_guard(
    tmp_path: Path, server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Canary("127.0.0.9") as canary:
        server.rules["/robots.txt"] = (302, b"", {"Location": f"http://127.0.0.9:{canary.port}/robots.txt"})
        assert kind_of(opener(tmp_path / "a", server, respect_robots=True), server.url("ok/1")) == "port"
        assert canary.connections == 0
    for path, kind in (("chain/3", "fetched"), ("loop", "fetched"), ("never", "timeout"), ("endless", "fetched")):
        monkeypatch.setenv("CDKIT_CACHE", str(tmp_path / "cache" / path))
        server.rules["/robots.txt"] = (302, b"", {"Location": server.url(path)})
        guarded = opener(tmp_path / path.replace("/", "-"), server, respect_robots=True)
        assert kind_of(guarded, server.url(f"ok/{path}")) == kind, path
    monkeypatch.setenv("CDKIT_CACHE", str(tmp_path / "cache" / "last"))
    # A host that reserves its rights on every answer does so on this one.
    server.rules["/robots.txt"] = (200, b"", {"TDM-Reservation": "1"})
    assert kind_of(opener(tmp_path / "b", server, respect_robots=True), server.url("ok/1")) == "opt_out"
