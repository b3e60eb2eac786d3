"""Bodies compressed unasked: read where it can be done, named where not, never larger than allowed."""

from __future__ import annotations

import gzip
import zlib

import pyarrow as pa
import pytest

from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.responses import decoded
from tests.support.hostile_server import picture

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
