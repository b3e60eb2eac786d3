"""Answers: what they promise on the wire and do not keep, bodies compressed unasked, and who opts out."""

from __future__ import annotations

import gzip
import resource
import urllib.request
import zlib
from email.message import Message
from pathlib import Path

import pyarrow as pa
import pytest

from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.fetch import GuardedOpener
from cdkit.fetching.job import FetchSettings, Job, Journal
from cdkit.fetching.responses import decoded, directives_for, opts_out
from tests.support.hostile_server import HostileServer, picture

BODY = picture("/wire")
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
SIZE = f"{len(BODY):x}".encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
SINGLE_BYTES = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY)
LAST = b"\r\n0\r\n\r\n"
MAX_BYTES = 1 << 16


def fetch(folder: Path, server: HostileServer, start: bytes, again: bytes = b"") -> bytes:
    server.wire["/wire/x"] = (start, again)
    settings = FetchSettings(deadline=3.0, max_bytes=MAX_BYTES, allow_hosts=(server.place,))
    guarded = GuardedOpener(Job(settings, ()), Journal(folder))
    with guarded.open(urllib.request.Request(server.url("wire/x#0"))) as response:
        return bytes(response.read())


READ = {
    "chunks": CHUNKED + SIZE + b"\r\n" + BODY + LAST,
    "chunks of one byte": CHUNKED
    + b"".join(b"1\r\n" + BODY[n : n + 1] + b"\r\n" for n in range(len(BODY)))
    + LAST[2:],
    "chunk extensions and upper case": CHUNKED + SIZE.upper() + b" ; name=value\r\n" + BODY + LAST,
    "trailers": CHUNKED + SIZE + b"\r\n" + BODY + b"\r\n0\r\nX-Checksum: 1\r\n\r\n",
    "the same length twice": OK + LENGTH + LENGTH + b"\r\n" + BODY,
    "the same length twice in one line": OK + b"Content-Length: %d, %d\r\n\r\n" % (len(BODY), len(BODY)) + BODY,
    "length and chunks": OK
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    + SIZE
    + b"\r\n"
    + BODY
    + LAST,
    "no length": OK + b"\r\n" + BODY,
    "an empty length": OK + b"Content-Length: \r\n\r\n" + BODY,
    "100 before": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + LENGTH + b"\r\n" + BODY,
    "102 before": b"HTTP/1.1 102 Processing\r\n\r\n" * 3 + OK + LENGTH + b"\r\n" + BODY,
    "103 before": b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n" + OK + LENGTH + b"\r\n" + BODY,
    "199 before": b"HTTP/1.1 199 What\r\nContent-Length: 5\r\n\r\n" + OK + LENGTH + b"\r\n" + BODY,
}


@pytest.mark.parametrize("name", READ)
def test_odd_answers_that_are_whole_are_read(tmp_path: Path, server: HostileServer, name: str) -> None:
    assert fetch(tmp_path, server, READ[name]) == BODY


REFUSED = {
    "a chunk of -1": (CHUNKED + b"-1\r\n", BODY, "protocol"),
    "a chunk of -1 after one": (CHUNKED + SIZE + b"\r\n" + BODY + b"\r\n-ffff\r\n", BODY, "protocol"),
    "a chunk of +5": (CHUNKED + b"+5\r\nabcde" + LAST, b"", "protocol"),
    "a chunk of 0x5": (CHUNKED + b"0x5\r\nabcde" + LAST, b"", "protocol"),
    "a chunk of 1_0": (CHUNKED + b"1_0\r\n" + BODY[:16] + LAST, b"", "protocol"),
    "a chunk without size": (CHUNKED + b"\r\n" + BODY + LAST, b"", "protocol"),
    "a chunk line without end": (CHUNKED, b"0", "protocol"),
    "a chunk of 4 GB": (CHUNKED + b"ffffffff\r\n", BODY, "too_large"),
    "a chunk of 2^200": (CHUNKED + b"f" * 50 + b"\r\n", BODY, "protocol"),
    "chunks without end": (CHUNKED, b"8\r\n12345678\r\n", "too_large"),
    "trailers without end": (CHUNKED + SIZE + b"\r\n" + BODY + b"\r\n0\r\n", b"X-More: 1\r\n", "too_large"),
    "headers without end": (OK, b"X-More: 1\r\n", "reset"),
    "a header line without end": (OK + b"X-Long: ", b"a" * 1000, "reset"),
    "a length of -1": (OK + b"Content-Length: -1\r\n\r\n", BODY, "protocol"),
    "a length of 2^300": (OK + b"Content-Length: " + b"9" * 90 + b"\r\n\r\n", BODY, "protocol"),
    "a length of 1e3": (OK + b"Content-Length: 1e3\r\n\r\n" + BODY, b"", "protocol"),
    "a length of 1 TB": (OK + b"Content-Length: 1099511627776\r\n\r\n", BODY, "too_large"),
    "two lengths": (OK + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY, b"", "protocol"),
    "two lengths in one line": (OK + b"Content-Length: 5, 6\r\n\r\n" + BODY, b"", "protocol"),
    "a body without end": (OK + b"\r\n", BODY, "too_large"),
    "gzip on the way": (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + BODY, b"", "encoding"),
    "compress": (
        OK + b"Content-Encoding: compress\r\n" + b"Content-Length: 9\r\n\r\n\x1f\x9d1234567",
        b"",
        "encoding",
    ),
    "interim answers without end": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", "protocol"),
    "switching protocols": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + BODY, b"", "protocol"),
    "HTTP/9": (b"HTTP/9 200 OK\r\n" + LENGTH + b"\r\n" + BODY, b"", "reset"),
    "a chunk that breaks off": (CHUNKED + SIZE + b"\r\n" + BODY[:9], b"", "reset"),
    "chunks that break off": (CHUNKED + SIZE + b"\r\n" + BODY + b"\r\n", b"", "reset"),
    "404 with a large body": (b"HTTP/1.1 404 No\r\nContent-Length: 1099511627776\r\n\r\n", BODY, "http_404"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_promised_wrongly_is_named_and_bounded(tmp_path: Path, server: HostileServer, name: str) -> None:
    start, again, kind = REFUSED[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FetchFailure) as caught:
        fetch(tmp_path, server, start, again)
    assert caught.value.kind == kind
    # In KiB: a few times what a body may have, whatever the server sends until the deadline.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


PICTURE = picture("/compressed")
LIMIT = 1 << 16


def arrow(codec: str, content: bytes) -> bytes:
    return pa.Codec(codec).compress(content, asbytes=True)


def raw_deflate(content: bytes) -> bytes:
    return zlib.compress(content, wbits=-zlib.MAX_WBITS)


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (gzip.compress(PICTURE), "gzip"),
        (gzip.compress(PICTURE), "X-GZIP"),
        (gzip.compress(PICTURE[:700]) + gzip.compress(PICTURE[700:900]) + gzip.compress(PICTURE[900:]), "gzip"),
        (gzip.compress(PICTURE) + b"\0\0 padding", "gzip"),
        (gzip.compress(PICTURE) + gzip.compress(PICTURE)[:3] + b"not a member", "gzip"),
        (zlib.compress(PICTURE), "deflate"),
        (raw_deflate(PICTURE), "deflate"),
        (gzip.compress(PICTURE), "deflate"),
        (zlib.compress(PICTURE), "gzip"),
        (arrow("brotli", PICTURE), "br"),
        (arrow("zstd", PICTURE), "zstd"),
        (arrow("zstd", PICTURE[:500]) + arrow("zstd", PICTURE[500:]), "zstd"),
        (gzip.compress(arrow("brotli", PICTURE)), "br, gzip"),
        (gzip.compress(gzip.compress(PICTURE)), " gzip,gzip "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_compressed_is_read(content: bytes, encoding: str) -> None:
    assert decoded(content, encoding, LIMIT) == PICTURE


@pytest.mark.parametrize(
    "encoding", ["", "identity", "none", "gzip", "deflate", "br", "zstd", "utf-8", "compress", "image/jpeg", "br,gzip"]
)
def test_a_picture_that_is_not_what_its_header_says_stays_one(encoding: str) -> None:
    assert decoded(PICTURE, encoding, LIMIT) == PICTURE


@pytest.mark.parametrize("encoding", ["compress", "exi", "aws-chunked", "sdch", "gzip, compress", "dcb"])
def test_what_cannot_be_undone_is_named(encoding: str) -> None:
    with pytest.raises(FetchFailure, match=encoding.rsplit(", ", maxsplit=1)[-1]) as caught:
        decoded(b"\x1f\x9d" + bytes(100), encoding, LIMIT)
    assert caught.value.kind == "encoding"


def test_a_stack_of_encodings_is_not_taken_down_without_end() -> None:
    with pytest.raises(FetchFailure, match="500 encodings"):
        decoded(PICTURE, ", ".join(["gzip"] * 500), LIMIT)


@pytest.mark.parametrize("encoding", ["gzip", "members", "deflate", "raw", "br", "zstd", "twice"])
def test_a_bomb_is_stopped_at_the_limit(encoding: str) -> None:
    zeros = bytes(8 << 20)
    bombs = {
        "gzip": gzip.compress(zeros),
        "members": gzip.compress(zeros[:60_000]) * 100,
        "deflate": zlib.compress(zeros),
        "raw": raw_deflate(zeros),
        "br": arrow("brotli", zeros),
        "zstd": arrow("zstd", zeros),
        "twice": gzip.compress(gzip.compress(zeros)),
    }
    names = {"members": "gzip", "raw": "deflate", "twice": "gzip, gzip"}
    with pytest.raises(FetchFailure, match="too_large"):
        decoded(bombs[encoding], names.get(encoding, encoding), LIMIT)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_body_that_breaks_off_keeps_what_came(encoding: str) -> None:
    whole = {
        "gzip": gzip.compress(PICTURE, 0),
        "deflate": zlib.compress(PICTURE, 0),
        "br": arrow("brotli", PICTURE * 20),
        "zstd": arrow("zstd", PICTURE * 20),
    }[encoding]
    # Whether it is a picture still is for the decoder to say: it must not be lost as `encoding` or a crash.
    assert decoded(whole[:-9], encoding, LIMIT)


@pytest.mark.parametrize(
    ("value", "applies"),
    [
        ("noai", True),
        ("NoImageAI, noindex", True),
        ("cdkit: noai", True),
        ("*: noai", True),
        ("otherbot: noai", False),
        ("otherbot: noindex, noai", False),
        ("otherbot: noindex, cdkit: noai", True),
        ("noai, otherbot: noindex", True),
        ("noindex, nofollow", False),
        ("unavailable_after: 25 Jun 2010 15:00:00 PST, noai", True),
        ("max-image-preview: large, noimageai", True),
        ("", False),
    ],
)
def test_opt_outs_count_for_whom_they_name(value: str, applies: bool) -> None:
    headers = Message()
    headers["X-Robots-Tag"] = value
    assert (opts_out(headers, "cdkit") is not None) == applies


def test_reserved_rights_are_respected() -> None:
    for value, expected in (("1", True), ("0", False), (" 1 ", True)):
        headers = Message()
        headers["TDM-Reservation"] = value
        assert (opts_out(headers, "cdkit") is not None) == expected
    assert directives_for("otherbot: noai", "otherbot") == {"noai"}
