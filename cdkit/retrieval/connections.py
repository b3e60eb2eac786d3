"""Connections of the guarded process: names resolved within the deadline, addresses checked, sockets watched."""

from __future__ import annotations

import functools
import http.client
import socket
import ssl
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.retrieval.addresses import WEB_PORTS, is_public
from cdkit.retrieval.deadline import Deadline
from cdkit.retrieval.failures import FetchFailure
from cdkit.retrieval.network_guard import vetted
from cdkit.retrieval.responses import BoundedResponse

Place = tuple[str, int]
MAX_ADDRESSES = 4


class Resolver:
    """Looks names up once per process and keeps the answer, so that a name cannot move while it is being used.

    names: answers used instead of DNS, as in FetchSettings.
    """

    def __init__(self, names: Mapping[str, Sequence[Sequence[str]]]) -> None:
        self._names = {name: list(answers) for name, answers in names.items()}
        self._lookups: dict[str, Future[list[str]]] = {}
        self._lock = threading.Lock()

    def addresses(self, host: str, timeout: float) -> list[str]:
        """The IP addresses of a host, in the resolver's order; raises TimeoutError or socket.gaierror."""
        with self._lock:
            lookup = self._lookups.get(host)
            if lookup is None:
                lookup = self._lookups[host] = Future()
                # getaddrinfo cannot be interrupted, so it waits in a thread that nobody has to wait for.
                threading.Thread(target=self._look_up, args=(host, lookup), daemon=True).start()
        return lookup.result(timeout)

    def _look_up(self, host: str, lookup: Future[list[str]]) -> None:
        try:
            answers = self._names.get(host)
            if answers is not None:
                if not answers:
                    return
                found = list(answers.pop(0) if len(answers) > 1 else answers[0])
            else:
                infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                found = list(dict.fromkeys(str(info[4][0]) for info in infos))
            lookup.set_result(found)
        except BaseException as error:
            with self._lock:
                self._lookups.pop(host, None)
            lookup.set_exception(error)


def trusted_certificates() -> ssl.SSLContext:
    """The system's certificate authorities; certifi's on a system without any (slim containers)."""
    paths = ssl.get_default_verify_paths()
    file, folder = Path(paths.cafile or ""), Path(paths.capath or "")
    if not file.is_file() and not (paths.capath and folder.is_dir() and any(folder.iterdir())):
        with suppress(ImportError):
            import certifi

            return ssl.create_default_context(cafile=certifi.where())
    return ssl.create_default_context()


@dataclass(frozen=True)
class Visit:
    """One hop of a fetch: where it may connect to. exempt: the place that the address checks leave alone.

    max_bytes: of the answer's body.
    """

    resolver: Resolver
    deadline: Deadline
    exempt: Place | None
    max_bytes: int

    def dial(self, place: Place, timeout: object = None, source_address: object = None) -> socket.socket:
        """Connect to a host and port, in the signature of socket.create_connection.

        Raises FetchFailure(blocked_address) when the host has no permitted address.
        """
        host, port = place[0].lower(), place[1]
        trusted = (host, port) == self.exempt
        if not trusted and port not in WEB_PORTS:
            raise FetchFailure("port", f"port {port}")
        found = self.resolver.addresses(host, self.deadline.remaining())
        permitted = found if trusted else [address for address in found if is_public(address)]
        if not permitted:
            raise FetchFailure("blocked_address", f"{host} is {', '.join(found[:MAX_ADDRESSES]) or 'nowhere'}")
        return self._connect(permitted[:MAX_ADDRESSES], port, trusted=trusted)

    def _connect(self, addresses: Sequence[str], port: int, *, trusted: bool) -> socket.socket:
        for number, address in enumerate(addresses, start=1):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                connection.settimeout(self.deadline.remaining())
                self.deadline.guard(connection)
                if trusted:
                    with vetted(address, port):
                        connection.connect((address, port))
                else:
                    connection.connect((address, port))
            except (OSError, FetchFailure):
                connection.close()
                if number == len(addresses):
                    raise
            else:
                return connection
        raise FetchFailure("dns", "no address")


class _Guarded:
    """Makes a connection class dial through its visit, and read no more than it allows."""

    def __init__(self, host: str, *, visit: Visit, **settings: Any) -> None:
        super().__init__(host, **settings)  # type: ignore[call-arg]
        self._create_connection = visit.dial
        # http.client makes its answers by this, and hands over the socket alone.
        bounded = functools.partial(BoundedResponse, max_bytes=visit.max_bytes)
        self.response_class: Any = bounded


class GuardedHTTPConnection(_Guarded, http.client.HTTPConnection):
    """An HTTP connection that dials through its visit."""


class GuardedHTTPSConnection(_Guarded, http.client.HTTPSConnection):
    """An HTTPS connection that dials through its visit."""


class VisitRequest(urllib.request.Request):
    """A request that knows its visit."""

    def __init__(self, url: str, headers: dict[str, str], visit: Visit) -> None:
        super().__init__(url, headers=headers)
        self.visit = visit


class GuardedHTTPHandler(urllib.request.HTTPHandler):
    """Opens http: by guarded connections."""

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_dialling(GuardedHTTPConnection, req), req)


class GuardedHTTPSHandler(urllib.request.HTTPSHandler):
    """Opens https: by guarded connections, certificates verified."""

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        context = self._context  # type: ignore[attr-defined]
        return self.do_open(_dialling(GuardedHTTPSConnection, req), req, context=context)


def _dialling(connection: type[_Guarded], request: urllib.request.Request) -> Any:
    if not isinstance(request, VisitRequest):
        raise FetchFailure("scheme", "a request that is no part of the job")
    return functools.partial(connection, visit=request.visit)
