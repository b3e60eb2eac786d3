"""User names and passwords in URLs are taken out, and nothing else is changed."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cdkit.core.formatting import URL_USERINFO, redacted, without_credentials, without_userinfo

URLS = [
    ("http://user:secret@a.test/x.jpg", "http://a.test/x.jpg"),
    ("HTTPS://secret@a.test:8080", "HTTPS://a.test:8080"),
    ("http://user:se@cr:et@a.test/", "http://a.test/"),
    ("http://us er:secret'\"@a.test/", "http://a.test/"),
    ("http://user:secret@[photo.jpg", "http://[photo.jpg"),
    ("http:////user:secret@a.test/", "http:////a.test/"),
    ("http:\\\\user:secret@a.test/", "http:\\\\a.test/"),
    (" ftp://user:secret@a.test/", " ftp://a.test/"),
    ("//user:secret@a.test/", "//a.test/"),
    ("http://a.test/@user/x.jpg", "http://a.test/@user/x.jpg"),
    ("http://a.test?mail=me@a.test", "http://a.test?mail=me@a.test"),
    ("http://a.test#@b", "http://a.test#@b"),
    ("me@a.test", "me@a.test"),
    ("", ""),
]


@pytest.mark.parametrize(("url", "expected"), URLS)
def test_a_url_loses_what_stands_before_its_host(url: str, expected: str) -> None:
    assert without_userinfo(url) == expected
    assert without_userinfo(expected) == expected
    assert pc.replace_substring_regex(pa.array([url]), URL_USERINFO, r"\1").to_pylist() == [expected]


def test_texts_lose_the_credentials_of_every_url_in_them() -> None:
    text = "proxy http://user:secret@a:3128, then 'https://b@c/d' (write to me@a.test, see http://a/@me)"
    assert (
        without_credentials(text) == "proxy http://a:3128, then 'https://c/d' (write to me@a.test, see http://a/@me)"
    )
    assert redacted({"vars": {"proxy": "http://u:p@a:1", "n": 3}, "list": ["s3://k:s@b", None, True]}) == {
        "vars": {"proxy": "http://a:1", "n": 3},
        "list": ["s3://b", None, True],
    }
