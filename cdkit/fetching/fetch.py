"""The opener that img2dataset fetches through: http and https only, bounded in time and size, checked at every hop."""

from __future__ import annotations

import hashlib
import http
import io
import threading
import urllib.request
import urllib.response
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from ipaddress import ip_address
from typing import Any
from urllib.parse import urljoin

from cdkit.fetching.blocklist import digests
from cdkit.fetching.failures import DEFERRED, FetchFailure, classify, status_failure
from cdkit.fetching.guard import (
    Deadline,
    GuardedHTTPHandler,
    GuardedHTTPSHandler,
    Place,
    Resolver,
    Visit,
    VisitRequest,
    trusted_certificates,
)
from cdkit.fetching.job import AGENT_TOKEN, Job, Journal
from cdkit.fetching.responses import BoundedResponse, decoded, opts_out
from cdkit.fetching.robots import MOST_BYTES as ROBOTS_BYTES
from cdkit.fetching.robots import Answer, HostRules
from cdkit.fetching.urls import WEB_PORTS, AllowedHosts, WebUrl, is_public, parse_url, proxy_place

MAX_REDIRECTS = 5
BLOCK = 1 << 16
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class Body:
    """What came back: the bytes, the headers of the last response, and where it came from."""

    content: bytes
    headers: Message
    url: str
    status: int


class GuardedOpener(urllib.request.OpenerDirector):
    """What `urllib.request.urlopen` uses in the guarded process; every fetch ends in the journal exactly once."""

    def __init__(self, job: Job, journal: Journal) -> None:
        super().__init__()
        self.job = job
        self.journal = journal
        self.settings = job.settings
        self.allowed = AllowedHosts.parse(list(job.settings.allow_hosts))
        self.resolver = Resolver(job.settings.names)
        self.turns = HostTurns(job.settings.per_host)
        self.rules = HostRules() if job.settings.respect_robots else None
        self.add_handler(GuardedHTTPHandler())
        self.add_handler(GuardedHTTPSHandler(context=trusted_certificates()))
        self.proxy: Place | None = None
        if job.settings.proxy is not None:
            self.add_handler(urllib.request.ProxyHandler(dict.fromkeys(("http", "https"), job.settings.proxy)))
            self.proxy = proxy_place(job.settings.proxy)

    def open(self, fullurl: Any, data: Any = None, timeout: Any = None) -> urllib.response.addinfourl:
        """Fetch one URL of the job (its fragment is its key), whole; raises FetchFailure.

        The timeout that is passed in is img2dataset's, per socket operation; the job's deadline rules instead.
        """
        text = fullurl.full_url if isinstance(fullurl, urllib.request.Request) else str(fullurl)
        address, _, fragment = text.rpartition("#")
        if not fragment.isdigit() or data is not None:
            raise FetchFailure("scheme", "a request that is no part of the job")
        key = int(fragment)
        try:
            body = self._fetch(key, address)
        except Exception as error:
            failure = classify(error)
            facts = {"status": failure.status, "detail": failure.detail, "retry_after": failure.retry_after}
            self.journal.write(key, failure.kind, **facts)
            raise failure from error
        digest = hashlib.sha256(body.content).hexdigest()
        self.journal.write(
            key, "fetched", status=body.status, sha256=digest, bytes=len(body.content), final_url=body.url
        )
        return urllib.response.addinfourl(io.BytesIO(body.content), body.headers, body.url, body.status)

    def _fetch(self, key: int, address: str) -> Body:
        url = parse_url(address)
        self._check(url)
        seconds = self.settings.deadline
        # Waiting for the host's turn counts, so that a fetch never holds its thread beyond the deadline.
        with Deadline(seconds) as deadline:
            try:
                with self.turns.turn(url.place, seconds / 2):
                    self.journal.write(key, "started")
                    hop = self._visit_permitted(url, deadline)
                body = self._follow(url, hop, deadline) if isinstance(hop, WebUrl) else hop
            except FetchFailure:
                raise
            except Exception as error:
                if deadline.expired:
                    raise FetchFailure("timeout", f"not done after {seconds:g} s") from error
                raise
        self._verify(key, body)
        return body

    def _follow(self, url: WebUrl, hop: Body | WebUrl, deadline: Deadline) -> Body:
        """Follow redirects from `url`, each checked like the first URL."""
        seen = {url.text}
        for _ in range(MAX_REDIRECTS):
            if not isinstance(hop, WebUrl):
                return hop
            self._check(hop)
            if hop.text in seen:
                raise FetchFailure("redirect", "a redirect loop")
            seen.add(hop.text)
            try:
                with self.turns.turn(hop.place, deadline.remaining()):
                    hop = self._visit_permitted(hop, deadline)
            except FetchFailure as failure:
                if failure.kind == DEFERRED:
                    raise FetchFailure("timeout", failure.detail) from failure
                raise
        if isinstance(hop, WebUrl):
            raise FetchFailure("redirect", f"more than {MAX_REDIRECTS} redirects")
        return hop

    def _check(self, url: WebUrl) -> None:
        """What can be said of a URL before anything is looked up."""
        if url.text in self.job.blocked:
            raise FetchFailure("blocklisted", f"URL sha256 {hashlib.sha256(url.text.encode()).hexdigest()}")
        if self.allowed.covers(url):
            return
        if url.port not in WEB_PORTS:
            raise FetchFailure("port", f"port {url.port}")
        try:
            ip_address(url.host)
        except ValueError:
            return
        if not is_public(url.host):
            raise FetchFailure("blocked_address", url.host)

    def _visit_permitted(self, url: WebUrl, deadline: Deadline) -> Body | WebUrl:
        """One request for an image, where its host's own rules are asked first if they are to be."""
        if self.rules is not None:
            self.rules.require(url, lambda file: self._rules_file(file, deadline), deadline.remaining())
        return self._visit(url, deadline)

    def _rules_file(self, url: WebUrl, deadline: Deadline) -> Answer:
        """What a host says to robots.txt or ai.txt: its start, behind redirects that are checked like an image's."""
        hop: Body | WebUrl = url
        for _ in range(MAX_REDIRECTS + 1):
            if isinstance(hop, Body):
                return Answer(hop.status, hop.content.decode("utf-8", "replace"))
            self._check(hop)
            try:
                hop = self._visit(hop, deadline, start=ROBOTS_BYTES)
            except FetchFailure as failure:
                if failure.status is None or failure.kind == "opt_out":
                    raise
                return Answer(failure.status)
        # RFC 9309, section 2.3.1.2: as if there were none.
        return Answer(http.HTTPStatus.NOT_FOUND)

    def _visit(self, url: WebUrl, deadline: Deadline, start: int | None = None) -> Body | WebUrl:
        """One request: the body, or its first `start` bytes, or the URL it redirects to."""
        exempt = self.proxy or (url.place if self.allowed.covers(url) else None)
        headers = {
            "User-Agent": self.settings.user_agent,
            "Accept": "image/*,*/*;q=0.5",
            "Accept-Encoding": "identity",
        }
        request = VisitRequest(url.text, headers, Visit(self.resolver, deadline, exempt, self.settings.max_bytes))
        with super().open(request, timeout=deadline.remaining()) as response:
            opted_out = opts_out(response.headers, AGENT_TOKEN)
            if opted_out:
                raise FetchFailure("opt_out", opted_out, status=response.status)
            if response.status in _REDIRECTS and response.headers.get("Location"):
                return _redirected(url, str(response.headers["Location"]))
            if not 200 <= response.status < 300:
                raise status_failure(response.status, str(response.reason), response.headers.get("Retry-After"))
            content = self._read(response, deadline) if start is None else response.read(start)
            return Body(content, response.headers, url.text, response.status)

    def _read(self, response: BoundedResponse, deadline: Deadline) -> bytes:
        response.check_promises()
        limit = self.settings.max_bytes
        content = bytearray()
        while block := response.read(BLOCK):
            content += block
            if len(content) > limit:
                raise FetchFailure("too_large", f"more than {limit} bytes", status=response.status)
        if deadline.expired:
            raise FetchFailure("timeout", "the body did not end", status=response.status)
        if response.length or not content:
            raise FetchFailure("reset", f"the body ended after {len(content)} bytes", status=response.status)
        return decoded(bytes(content), ", ".join(response.headers.get_all("Content-Encoding", [])), limit)

    def _verify(self, key: int, body: Body) -> None:
        if self.job.blocked and not self.job.blocked.isdisjoint(digests(body.content)):
            digest = hashlib.sha256(body.content).hexdigest()
            raise FetchFailure("blocklisted", f"sha256 {digest}", status=body.status)
        expected = self.job.hashes.get(key)
        if expected is None:
            return
        algorithm = "md5" if len(expected) == 32 else "sha256"
        digest = hashlib.new(algorithm, body.content, usedforsecurity=False).hexdigest()
        if digest != expected.lower():
            raise FetchFailure("hash_mismatch", f"{algorithm} {digest}", status=body.status)


def _redirected(url: WebUrl, location: str) -> WebUrl:
    # Header bytes come as latin-1; addresses outside ASCII are UTF-8 in practice.
    with suppress(UnicodeEncodeError):
        location = location.encode("latin-1").decode("utf-8", "replace")
    try:
        return parse_url(urljoin(url.text, location))
    except ValueError as error:
        raise FetchFailure("redirect", str(error)) from error


@dataclass
class _Host:
    """The turns of one host, and how often it has answered in any way."""

    turns: threading.Semaphore
    answers: int = 0


class HostTurns:
    """At most `limit` fetches from one host and port at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._hosts: dict[tuple[str, int], _Host] = {}

    @contextmanager
    def turn(self, place: tuple[str, int], patience: float) -> Iterator[None]:
        """Wait for a turn, at most `patience` seconds.

        Raises FetchFailure: deferred when the host is only busy, timeout when it answered nobody in the meantime; so a
        host that hangs takes one batch per try, not one per few URLs.
        """
        with self._lock:
            host = self._hosts.setdefault(place, _Host(threading.Semaphore(self._limit)))
        before = host.answers
        if not host.turns.acquire(timeout=patience):
            if host.answers > before:
                raise FetchFailure(DEFERRED, f"{place[0]} is busy")
            raise FetchFailure("timeout", f"{place[0]} answered nobody for {patience:g} s")
        try:
            yield
            host.answers += 1
        except FetchFailure as failure:
            host.answers += failure.kind != "timeout"
            raise
        finally:
            host.turns.release()
