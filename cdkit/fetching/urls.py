"""Where may be fetched from: URLs as they are in the wild, public addresses only, and the hosts a user exempts."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from cdkit.core.errors import ConfigError
from cdkit.core.formatting import without_userinfo
from cdkit.fetching.failures import FetchFailure

DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")
_PATH_SAFE = "/%:@!$&'()*+,;=~-._|"
_QUERY_SAFE = _PATH_SAFE + "?"
_BRACKETED = re.compile(r"\[[^\[\]]*\](:[0-9]*)?")
MAX_URL = 8192
# A browser takes a reference without `;` for text inside an address, so that `?a=1&copy=2` keeps its parameter.
_REFERENCE = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]*|#[0-9]+|#[xX][0-9a-fA-F]+);")
LONGEST_HOST, LONGEST_LABEL = 253, 63
# Characters of a URL that a failure quotes.
DETAIL = 100


@dataclass(frozen=True)
class WebUrl:
    """A URL ready to fetch: ASCII, host in lower case, without user name, default port and fragment."""

    text: str
    scheme: str
    host: str
    port: int

    @property
    def place(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def origin(self) -> str:
        """The URL up to its path: scheme, host and, where it is not the default, port."""
        return "/".join(self.text.split("/", 3)[:3])


def split_url(text: str) -> SplitResult | None:
    """The parts of a URL; None for a text that Python's parser refuses. Nothing else calls `urlsplit`."""
    try:
        return urlsplit(text)
    except ValueError:
        return None


def parse_url(text: str) -> WebUrl:
    """Normalise a URL; raises FetchFailure (scheme, port or dns) when it can name nothing on the web."""
    plain = without_userinfo(text.strip())
    if len(plain) > MAX_URL:
        raise FetchFailure("scheme", f"a URL of {len(plain)} characters")
    parts = split_url(plain)
    if parts is None:
        raise FetchFailure("dns", "not a host: brackets or characters that no host has")
    if parts.scheme not in DEFAULT_PORTS:
        raise FetchFailure("scheme", f"{parts.scheme or 'no'} scheme")
    default = DEFAULT_PORTS[parts.scheme]
    name, port = _host(parts), _port(parts, default)
    bracketed = f"[{name}]" if ":" in name else name
    netloc = bracketed if port == default else f"{bracketed}:{port}"
    try:
        # Half of a surrogate pair stands for a byte that is no UTF-8, as in file names.
        path = quote(parts.path or "/", safe=_PATH_SAFE, errors="surrogateescape")
        query = quote(parts.query, safe=_QUERY_SAFE, errors="surrogateescape")
    except UnicodeError as error:
        raise FetchFailure("scheme", "characters that no URL has") from error
    return WebUrl(urlunsplit((parts.scheme, netloc, path, query, "")), parts.scheme, name, port)


def unescaped(text: str) -> str:
    """A URL without HTML character references: `&amp;` and `&#038;` become `&`, also where they were escaped twice."""
    for _ in range(2):
        text = _REFERENCE.sub(lambda reference: html.unescape(reference.group()), text)
    return text


def spellings(text: str) -> list[WebUrl]:
    """The URLs that a pool's text may mean, the likelier first; raises FetchFailure when it can name nothing.

    Pools hold addresses as they stood in pages, where `&amp;` is the page's way to write `&`: a browser asks for the
    unescaped form, so that one comes first, and the form as written after it.
    """
    urls: dict[str, WebUrl] = {}
    failure: FetchFailure | None = None
    for form in (unescaped(text), text):
        try:
            url = parse_url(form)
            urls.setdefault(url.text, url)
        except FetchFailure as problem:
            failure = problem
    if not urls and failure is not None:
        raise failure
    return list(urls.values())


def _port(parts: SplitResult, default: int | None) -> int:
    try:
        port = default if parts.port is None else parts.port
    except ValueError as error:
        raise FetchFailure("port", str(error)[:DETAIL]) from error
    if not port:
        raise FetchFailure("port", f"port {port}")
    return port


def _host(parts: SplitResult) -> str:
    """The host in ASCII and lower case: an IPv6 literal without its zone, or a name."""
    host = parts.hostname or ""
    failure = FetchFailure("dns", f"not a host: {host[:DETAIL]!r}")
    # Only IPv6 addresses stand in brackets, and nothing but a port beside them.
    bracketed = _BRACKETED.fullmatch(parts.netloc.rpartition("@")[2]) is not None
    if bracketed != (":" in host) or (not bracketed and set("[]") & set(parts.netloc)):
        raise failure
    try:
        if bracketed:
            return str(IPv6Address(host.partition("%")[0]))
        name = (host if host.isascii() else host.encode("idna").decode("ascii")).lower()
    except ValueError as error:
        raise failure from error
    if not _HOST.fullmatch(name) or len(name) > LONGEST_HOST or max(map(len, name.split("."))) > LONGEST_LABEL:
        raise failure
    return name


def proxy_place(text: str) -> tuple[str, int] | None:
    """Host and port of a proxy's `http://[USER:PASSWORD@]HOST:PORT`; None when it is something else."""
    parts = split_url(text)
    if parts is None or parts.scheme != "http":
        return None
    try:
        return _host(parts), _port(parts, None)
    except FetchFailure:
        return None


def url_text(text: str) -> str | None:
    """A URL as `parse_url` writes it; None when it can name nothing on the web."""
    try:
        return parse_url(text).text
    except FetchFailure:
        return None


def host_of(text: str) -> str:
    """The host of a URL, or the whole text when it has none: what `--per-host` counts by."""
    try:
        return parse_url(text).host
    except FetchFailure:
        return text


@dataclass(frozen=True)
class AllowedHosts:
    """Hosts exempt from the address and port checks, exactly as written; a None port means any port of that host."""

    places: frozenset[tuple[str, int | None]] = frozenset()

    @classmethod
    def parse(cls, values: list[str]) -> AllowedHosts:
        """From `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`; raises ConfigError that lists every mistake."""
        places, problems = set(), []
        for value in values:
            place = _allowed_place(value)
            if place is None:
                problems.append(f"{value!r}: give HOST or HOST:PORT, for example 127.0.0.1:8532")
            else:
                places.add(place)
        if problems:
            raise ConfigError("These allowed hosts cannot be used:", problems=problems)
        return cls(frozenset(places))

    def covers(self, url: WebUrl) -> bool:
        """Whether the URL's host is one of these, as written (`localhost` is not `127.0.0.1`)."""
        return (url.host, url.port) in self.places or (url.host, None) in self.places


def _allowed_place(value: str) -> tuple[str, int | None] | None:
    if "/" in value or "@" in value or value.endswith(":"):
        return None
    try:
        # A bare IPv6 address would read as HOST:PORT.
        text = f"[{IPv6Address(value)}]" if value.count(":") > 1 and not value.startswith("[") else value
        parts = urlsplit(f"//{text}")
        return _host(parts), None if parts.port is None else _port(parts, None)
    except (ValueError, FetchFailure):
        return None


WEB_PORTS = frozenset({80, 443})

# Global unicast only, whatever an IPv4 address is wrapped in: Python 3.11's own `is_global` misses some of these.
# Sources: the IANA special-purpose address registries, RFC 6052 and 8215 (NAT64), 3056 (6to4), 4380 (Teredo).
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
# The first holds protocol assignments; Teredo is unwrapped before.
_DENIED_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
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
