"""Which addresses may be fetched from: global unicast only, whatever an IPv4 address is wrapped in.

Python 3.11's own `is_private` and `is_global` miss several of these, so the denied networks are spelled out. Sources:
the IANA special-purpose address registries, RFC 6052 and RFC 8215 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

WEB_PORTS = frozenset({80, 443})

_DENIED_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; cloud metadata of some providers
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host
        "169.254.0.0/16",  # link-local; cloud metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")
_DENIED_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments; Teredo is unwrapped before
        "2001:db8::/32",
        "3fff::/20",
    )
)
_COMPATIBLE = IPv6Network("::/96")
_NAT64 = IPv6Network("64:ff9b::/96")
# Other addresses of 64:ff9b:1::/48 hold the IPv4 address elsewhere, depending on a translator nobody can ask.
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/96")


def is_public(text: str) -> bool:
    """Whether `text` is an IP address that may be connected to; anything that is no address is not."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address):
        wrapped = unwrap(address)
        return all(map(_is_public_v4, wrapped)) if wrapped else _is_public_v6(address)
    return _is_public_v4(address)


def unwrap(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that traffic to `address` may end at; empty for a plain IPv6 address."""
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    if any(address in network for network in (_COMPATIBLE, _NAT64, _LOCAL_NAT64)):
        return (IPv4Address(int(address) & 0xFFFFFFFF),)
    return ()


def _is_public_v4(address: IPv4Address) -> bool:
    return address.is_global and not any(address in network for network in _DENIED_V4)


def _is_public_v6(address: IPv6Address) -> bool:
    return address.is_global and address in _GLOBAL_V6 and not any(address in network for network in _DENIED_V6)
