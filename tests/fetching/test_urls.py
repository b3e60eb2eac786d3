"""URLs as they are in the wild, and hosts that a user allows."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cdkit
from cdkit.core.errors import ConfigError
from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.urls import AllowedHosts, host_of, parse_url, spellings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://Example.com", "http://example.com/"),
        (" HTTPS://example.com:443/a b.jpg#top\n", "https://example.com/a%20b.jpg"),
        ("http://example.com/ü.jpg?q=ö&x=%20", "http://example.com/%C3%BC.jpg?q=%C3%B6&x=%20"),
        ("http://bücher.de:8080/", "http://xn--bcher-kva.de:8080/"),
        ("http://user:secret@example.com/a", "http://example.com/a"),
        ("http://127.0.0.1\\@example.com/", "http://example.com/"),
        ("http://[2001:DB8::1]:8080/x", "http://[2001:db8::1]:8080/x"),
        ("http://example.com/caf\udce9.jpg", "http://example.com/caf%E9.jpg"),
        ("http://[fe80::1%25eth0]/x", "http://[fe80::1]/x"),
        ("http://example.com:/x", "http://example.com/x"),
        ("http://user:p@ss:word@example.com/@a", "http://example.com/@a"),
        ("http://my_shop.example.com/a|b[1].jpg", "http://my_shop.example.com/a|b%5B1%5D.jpg"),
    ],
)
def test_urls_are_made_fetchable(text: str, expected: str) -> None:
    assert parse_url(text).text == expected


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "scheme"),
        ("example.com/a.jpg", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("data:,x", "scheme"),
        ("http:///a.jpg", "dns"),
        ("http://exa mple.com/", "dns"),
        ("http://[::1", "dns"),
        ("http://example.com:99999/", "port"),
        ("http://example.com:0/", "port"),
        ("http://example.com/" + "a" * 10_000, "scheme"),
        ("http://[photo.jpg", "dns"),
        ("http://photo].jpg", "dns"),
        ("http://[photo]/a.jpg", "dns"),
        ("http://[v1.abc]/", "dns"),
        ("http://a[::1]/", "dns"),
        ("http://[::1]a/", "dns"),
        ("http://[::1]a:80/", "dns"),
        ("http://[12345::]/", "dns"),
        ("http://\u2100.com/", "dns"),
        ("http://user:secret@\u2100.com/", "dns"),
        ("http://ex%61mple.com/", "dns"),
        ("http://%5B::1%5D/", "dns"),
        ("http://a..b/", "dns"),
        (f"http://{'a' * 64}.com/", "dns"),
        (f"http://{'ü' * 64}.com/", "dns"),
        (f"http://{'a.' * 127}com/", "dns"),
        ("http://\ud800.com/", "dns"),
        ("http://exa\0mple.com/", "dns"),
        ("http://user:secret@/", "dns"),
        ("http:////example.com/a.jpg", "dns"),
        ("http:\\\\example.com\\a.jpg", "dns"),
        ("http://example.com:port/", "port"),
        ("http://example.com:80:80/", "port"),
        ("http://example.com:-1/", "port"),
        ("http://example.com:\uff18\uff10/", "port"),
        (f"http://example.com:{'9' * 5000}/", "port"),
        ("http://example.com/\ud800.jpg", "scheme"),
        ("http://example.com/?q=\udbff", "scheme"),
        ("javascript:alert(1)", "scheme"),
        ("//example.com/a.jpg", "scheme"),
        ("\0", "scheme"),
    ],
)
def test_hopeless_urls_fail_with_their_kind(text: str, kind: str) -> None:
    with pytest.raises(FetchFailure) as caught:
        parse_url(text)
    assert caught.value.kind == kind
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 200
    str(caught.value).encode()


ANYTHING = st.text(st.characters(exclude_categories=[]), max_size=60)


@given(ANYTHING, st.sampled_from(["", "http://", "http://[", "http://u:p@", "https://a.b/", "http://a.b:80"]))
def test_any_text_is_a_url_or_a_failure(text: str, start: str) -> None:
    try:
        url = parse_url(start + text)
    except FetchFailure:
        return
    assert url.text.isascii()
    assert not any(character.isspace() or character == "#" for character in url.text)
    # What is checked is what is connected to.
    again = urlsplit(url.text)
    assert (again.hostname, again.port or {"http": 80, "https": 443}[again.scheme]) == url.place
    assert parse_url(url.text) == url


def test_an_allowed_host_is_that_host_and_port_only() -> None:
    allowed = AllowedHosts.parse(["127.0.0.1:8000", "Images.Intern", "[::1]:81", "::2"])
    assert allowed.covers(parse_url("http://127.0.0.1:8000/a"))
    assert not allowed.covers(parse_url("http://127.0.0.1/a"))
    assert not allowed.covers(parse_url("http://127.0.0.1:8001/a"))
    assert not allowed.covers(parse_url("http://localhost:8000/a"))
    assert not allowed.covers(parse_url("http://2130706433:8000/a"))
    assert allowed.covers(parse_url("https://images.intern:9443/a"))
    assert not allowed.covers(parse_url("http://evil.images.intern/"))
    assert allowed.covers(parse_url("http://[::1]:81/"))
    assert allowed.covers(parse_url("http://[::2]:7/"))


@pytest.mark.parametrize("value", ["", "http://a", "a:b", "a:99999", "a:", "user@a", "exa mple"])
def test_an_allowed_host_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ConfigError):
        AllowedHosts.parse([value])


def test_host_of_counts_hosts() -> None:
    assert host_of("http://A.b/1") == host_of("https://a.B:8/2") == "a.b"
    assert host_of("nonsense") == "nonsense"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a.b/?x=1&y=2", ["http://a.b/?x=1&y=2"]),
        ("http://a.b/?x=1&amp;y=2", ["http://a.b/?x=1&y=2", "http://a.b/?x=1&amp;y=2"]),
        ("http://a.b/?x=1&AMP;y=2", ["http://a.b/?x=1&y=2", "http://a.b/?x=1&AMP;y=2"]),
        # As WordPress writes it; read as it stands, the rest of it would be a fragment.
        ("http://a.b/?x=1&#038;y=2", ["http://a.b/?x=1&y=2", "http://a.b/?x=1&"]),
        ("http://a.b/?x=1&amp;amp;y=2", ["http://a.b/?x=1&y=2", "http://a.b/?x=1&amp;amp;y=2"]),
        ("http://a.b/O&#39;Neil.jpg", ["http://a.b/O'Neil.jpg", "http://a.b/O&"]),
        # Parameters, not references.
        ("http://a.b/?x=1&copy=2&amp=3", ["http://a.b/?x=1&copy=2&amp=3"]),
        ("http://a.b/?x=1&y;=2", ["http://a.b/?x=1&y;=2"]),
    ],
)
def test_a_url_copied_out_of_a_page_is_also_read_as_a_browser_does(text: str, expected: list[str]) -> None:
    assert [url.text for url in spellings(text)] == expected


def test_a_url_that_names_nothing_in_any_spelling_fails() -> None:
    with pytest.raises(FetchFailure):
        spellings("&amp;http://a.b/")


def test_urls_are_taken_apart_in_one_place() -> None:
    package = Path(cdkit.__file__).parent
    users = {path.name for path in package.rglob("*.py") if re.search(r"\burl(split|parse)\(", path.read_text())}
    assert users == {"urls.py"}
