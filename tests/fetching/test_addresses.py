"""The address policy: only global unicast passes, whatever an IPv4 address is wrapped in."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.fetching.addresses import is_public, unwrap

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
