"""Pool rows whose URL nothing can be fetched from: each ends as a counted reason of its own, and the run goes on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdkit.cli.app import execute_command
from cdkit.core.formatting import without_userinfo
from cdkit.core.shards import parts
from tests.support.hostile_server import HostileServer
from tests.support.photo_pool import picture

HERE = Path(__file__).parent
# Further forms, with the reason that each must be counted under.
FORMS = {
    "http://[": "dns",
    "http://]photo.jpg": "dns",
    "http://[::1]photo.jpg": "dns",
    "http://[fe80::1%25eth0]/photo.jpg": "blocked_address",
    "http://[::ffff:10.0.0.1]/photo.jpg": "blocked_address",
    "http://example.com:photo/": "port",
    "http://example.com:70000/": "port",
    "http://example.com:-1/": "port",
    "http://user:p@ss@example.com:80:80/": "port",
    f"http://example.com:{'1' * 6000}/": "port",
    "http://:80/photo.jpg": "dns",
    "http://user:pass@/photo.jpg": "dns",
    "http://exam%70le.com/photo.jpg": "dns",
    "http://example\\photo.jpg": "dns",
    f"http://{'ö' * 80}.example/": "dns",
    f"http://{'o' * 80}.example/": "dns",
    "http://\u2100.example/": "dns",
    "http://a\u0001b/": "dns",
    f"http://example.com/{'a' * 9000}": "scheme",
    "http://10.0.0.1/photo.jpg": "blocked_address",
}


def retrieve(
    folder: Path, pool: Path, server: HostileServer, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
    """Build an index over a pool, retrieve through a proxy that knows a picture for any path; the rows left out."""
    assert execute_command(["index", "build", "--captions", str(pool), "--out", str(folder / "i")]) == 0
    command = ["retrieve", str(folder / "i"), "a photo of a red star", "--out", str(folder / "s"), "--count", "50"]
    settings = ["--min-similarity", "-1", "--proxy", f"http://{server.place}", "--format", "json"]
    capsys.readouterr()
    code = execute_command([*command, *settings])
    out = json.loads(capsys.readouterr().out)
    rejects = [row for path in parts(folder / "s" / "rejects") for row in pq.read_table(path).to_pylist()]
    return code, out, rejects


def good(server: HostileServer, *urls: str) -> None:
    for number, url in enumerate(urls):
        server.wire[url] = (b"HTTP/1.1 200 OK\r\n\r\n" + picture(number), b"")


def test_a_bracket_in_one_url_ends_that_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with HostileServer() as server:
        code, out, rejects = retrieve(tmp_path, HERE / "03-bracket-url" / "bracket_url.parquet", server, capsys)
    assert (code, out["accepted"]) == (5, 0)
    assert {row["url"]: row["reason"] for row in rejects} == {
        "http://[photo.jpg": "dns",
        "http://images.example.com/star.jpg": "http_404",
    }


def test_urls_that_pythons_parser_refuses_end_their_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with HostileServer() as server:
        code, _, rejects = retrieve(tmp_path, HERE / "23-bad-urls" / "bad_ipv6.csv", server, capsys)
    assert code == 5
    assert {row["url"]: row["reason"] for row in rejects} == {"http://a.test/1": "http_404", "http://[::1": "dns"}


def test_every_form_is_counted_and_the_good_rows_are_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "pool.jsonl"
    urls = [*FORMS, "http://a.test/wire/1", "http://user:secret@b.test/wire/2", "http://c.test/wire/[3"]
    pool.write_text("\n".join(json.dumps({"url": url, "text": f"a red star {n}"}) for n, url in enumerate(urls)))
    with HostileServer() as server:
        good(server, "http://a.test/wire/1", "http://b.test/wire/2", "http://c.test/wire/%5B3")
        code, out, rejects = retrieve(tmp_path, pool, server, capsys)
    assert (code, out["accepted"]) == (5, 3)
    assert {row["url"]: row["reason"] for row in rejects} == {without_userinfo(url): FORMS[url] for url in FORMS}
    assert out["rejected"] == dict(Counter(FORMS.values()))
