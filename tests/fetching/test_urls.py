"""URLs as they are in the wild, the addresses that may be fetched from, and hosts that a user allows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cdkit
from cdkit.core.errors import ConfigError
from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.urls import AllowedHosts, host_of, is_public, parse_url, spellings, unwrap


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


PRIVATE_V4 = [
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
PRIVATE_V6 = [
    IPv6Network(text)
    for text in ("::1/128", "::/128", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "2001:db8::/32", "100::/64")
]


def inside(networks: Sequence[IPv4Network | IPv6Network]) -> st.SearchStrategy[IPv4Address | IPv6Address]:
    def within(network: IPv4Network | IPv6Network) -> st.SearchStrategy[IPv4Address | IPv6Address]:
        return st.integers(0, network.num_addresses - 1).map(lambda place: network[place])

    return st.sampled_from(networks).flatmap(within)


def wrappings(address: IPv4Address) -> dict[str, str]:
    number = int(address)
    return {
        "mapped": str(IPv6Address((0xFFFF << 32) | number)),
        "compatible": str(IPv6Address(number)),
        "nat64": str(IPv6Address((0x64FF9B << 96) | number)),
        "local nat64": str(IPv6Address((0x64FF9B0001 << 80) | number)),
        "6to4": str(IPv6Address((0x2002 << 112) | (number << 80) | 1)),
        "teredo client": str(IPv6Address((0x20010000 << 96) | (0x08080808 << 64) | (number ^ 0xFFFFFFFF))),
        "teredo server": str(IPv6Address((0x20010000 << 96) | (number << 64) | (0x08080808 ^ 0xFFFFFFFF))),
    }


@given(inside(PRIVATE_V4))
def test_no_private_ipv4_passes_in_any_wrapping(address: IPv4Address) -> None:
    assert not is_public(str(address))
    assert not any(is_public(text) for text in wrappings(address).values())


@given(inside(PRIVATE_V6))
def test_no_private_ipv6_passes(address: IPv6Address) -> None:
    assert not is_public(str(address))


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_that_passes_is_global_or_wraps_what_passes(address: IPv6Address) -> None:
    if is_public(str(address)):
        wrapped = unwrap(address)
        assert all(is_public(str(inner)) for inner in wrapped)
        assert wrapped or (address.is_global and str(address)[0] in "23")


@given(st.ip_addresses(v=4))
def test_wrapping_never_lets_more_through(address: IPv4Address) -> None:
    if not is_public(str(address)):
        assert not any(is_public(text) for text in wrappings(address).values())


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_the_public_web_passes(text: str) -> None:
    assert is_public(text)


@pytest.mark.parametrize(
    "text",
    [
        *("169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "255.255.255.255", "224.0.0.1"),
        *("::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "fd00:ec2::254", "fe80::1%eth0"),
        # The IPv4 address in the middle, where another translator would look for it.
        "64:ff9b:1:a00:0:100:808:808",
        *("", "localhost", "1", "0x7f.1", "8.8.8.8:80", "8.8.8.8 "),
    ],
)
def test_traps_are_blocked(text: str) -> None:
    assert not is_public(text)
