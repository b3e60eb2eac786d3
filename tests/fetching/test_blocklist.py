"""Blocklists: what their lines mean, and that what they name is never asked for, or never written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cdkit.core.errors import InputError
from cdkit.core.protocols import Context
from cdkit.core.storage import Folder
from cdkit.fetching.blocklist import Blocklist, read_blocklist
from cdkit.fetching.job import FetchSettings, Job
from cdkit.retrieval.accept import Limits
from cdkit.retrieval.download import download
from tests.retrieval.conftest import candidates_of
from tests.support.accept_all import AcceptAll, failures_of
from tests.support.hostile_server import HostileServer, picture


def test_lines_are_urls_or_hashes(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    hashes = {"a" * 32, "B" * 40, "0" * 64}
    lines = ["# removed on request", "", "HTTP://Example.org:80/a b.jpg#part", "f" * 16, *hashes]
    path.write_text("\r\n".join(lines), encoding="utf-8-sig")
    found = read_blocklist(path)
    assert found.urls == {"http://example.org/a%20b.jpg"}
    assert found.hashes == {text.lower() for text in hashes}
    assert found.perceptual == (2**64 - 1,)


def test_a_list_that_is_half_understood_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with pytest.raises(InputError, match="cannot be read"):
        read_blocklist(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_blocklist(path)
    path.write_text("http://a.test/1\nexample.org/no-scheme\n" + "abc123\n" * 8)
    with pytest.raises(InputError, match=r"9 line\(s\).*: 2, 3, 4, 5, 6, …"):
        read_blocklist(path)


def test_a_job_keeps_its_list(tmp_path: Path) -> None:
    job = Job(FetchSettings(), ("http://a.test/",), {}, frozenset({"http://b.test/", "a" * 32}))
    job.write(tmp_path)
    assert Job.read(tmp_path) == job


def test_what_is_listed_is_never_asked_for_or_never_written(
    tmp_path: Path, context: Context, server: HostileServer
) -> None:
    urls = [server.url(path) for path in ("ok/0", "ok/1", "ok/2", f"redirect?to={server.url('ok/3')}", "ok/4")]
    listed = Blocklist(
        urls=frozenset({urls[0], server.url("ok/3")}),
        hashes=frozenset({hashlib.sha1(picture("/ok/1")).hexdigest()}),
    )
    done = download(
        candidates_of(urls),
        Folder(tmp_path),
        context,
        limits=Limits(5),
        judge=AcceptAll(),
        settings=FetchSettings(allow_hosts=(server.place,)),
        blocklist=listed,
    )
    assert [candidate.url for candidate, _ in done.accepted] == [urls[2], urls[4]]
    assert failures_of(done) == {"blocklisted": 3}
    assert {"/ok/0", "/ok/3"}.isdisjoint(server.hits)
    details = {failure.detail for _, failure in done.failed}
    assert f"sha256 {hashlib.sha256(picture('/ok/1')).hexdigest()}" in details
    assert f"URL sha256 {hashlib.sha256(urls[0].encode()).hexdigest()}" in details
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(picture("/ok/2") in content for content in written)
    assert not any(picture("/ok/1") in content for content in written)
