"""URLs as they are in the wild, made fetchable, and the hosts a user exempts from the address checks."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from urllib.parse import quote, urlsplit, urlunsplit

from cdkit.errors import ConfigError
from cdkit.retrieval.failures import FetchFailure

DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")
_PATH_SAFE = "/%:@!$&'()*+,;=~-._|"
_QUERY_SAFE = _PATH_SAFE + "?"
MAX_URL = 8192
# A browser takes a reference without `;` for text inside an address, so that `?a=1&copy=2` keeps its parameter.
_REFERENCE = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]*|#[0-9]+|#[xX][0-9a-fA-F]+);")


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


def parse_url(text: str) -> WebUrl:
    """Normalise a URL; raises FetchFailure (scheme, port or dns) when it can name nothing on the web."""
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise FetchFailure("port" if "port" in str(error).lower() else "dns", str(error)) from error
    if parts.scheme not in DEFAULT_PORTS:
        raise FetchFailure("scheme", f"{parts.scheme or 'no'} scheme")
    if len(text) > MAX_URL:
        raise FetchFailure("scheme", f"a URL of {len(text)} characters")
    default = DEFAULT_PORTS[parts.scheme]
    port = default if port is None else port
    if port == 0:
        raise FetchFailure("port", "port 0")
    name = _host(host)
    bracketed = f"[{name}]" if ":" in name else name
    netloc = bracketed if port == default else f"{bracketed}:{port}"
    path, query = quote(parts.path or "/", safe=_PATH_SAFE), quote(parts.query, safe=_QUERY_SAFE)
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
    found: dict[str, WebUrl] = {}
    failure: FetchFailure | None = None
    for form in (unescaped(text), text):
        try:
            url = parse_url(form)
            found.setdefault(url.text, url)
        except FetchFailure as problem:
            failure = problem
    if not found and failure is not None:
        raise failure
    return list(found.values())


def _host(host: str) -> str:
    """The host in ASCII and lower case: an IPv6 literal or a name."""
    if ":" in host:
        try:
            return str(IPv6Address(host.partition("%")[0]))
        except ValueError as error:
            raise FetchFailure("dns", f"not a host: {host!r}") from error
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise FetchFailure("dns", f"not a host: {host!r}") from error
    if not _HOST.fullmatch(name.lower()):
        raise FetchFailure("dns", f"not a host: {host!r}")
    return name.lower()


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
    if "/" in value or "@" in value:
        return None
    try:
        # A bare IPv6 address would read as HOST:PORT.
        text = f"[{IPv6Address(value)}]" if value.count(":") > 1 and not value.startswith("[") else value
        parts = urlsplit(f"//{text}")
        if parts.port == 0 or text.endswith(":"):
            return None
        return _host(parts.hostname or ""), parts.port
    except (ValueError, FetchFailure):
        return None
