"""The guard: no socket of this process leads to another place than it may, none outlives its fetch's deadline."""

from __future__ import annotations

import functools
import http.client
import os
import socket
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.responses import BoundedResponse
from cdkit.fetching.urls import WEB_PORTS, is_public

Place = tuple[str, int]
MAX_ADDRESSES = 4
_EVENTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_vetted = threading.local()


def install_audit_hook() -> None:
    """Refuse forbidden connections in this process from now on; it cannot be taken back."""
    sys.addaudithook(_check)


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    # Datagrams on connected sockets name no address: their connect was checked.
    if event in _EVENTS and not (event == "socket.sendmsg" and arguments[1] is None) and not permits(arguments[1]):
        raise FetchFailure("blocked_address", str(arguments[1])[:100])


def permits(address: Any) -> bool:
    """Whether a socket may be connected to `address`: public and a web port, or vetted for this thread."""
    if not isinstance(address, tuple) or len(address) < 2:
        return False
    host, port = address[0], address[1]
    if not isinstance(host, str) or not isinstance(port, int):
        return False
    if (host, port) == getattr(_vetted, "place", None):
        return True
    return port in WEB_PORTS and is_public(host)


@contextmanager
def vetted(address: str, port: int) -> Iterator[None]:
    """Let this thread connect to one address and port that would be blocked; for exempt hosts and the proxy."""
    _vetted.place = (address, port)
    try:
        yield
    finally:
        _vetted.place = None


class Deadline:
    """A context that lasts `seconds`; then the guarded connection is shut down under whoever waits on it.

    A socket timeout is per operation: it does not see a server that drips headers, body or a TLS handshake.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._watchdog = threading.Timer(seconds, self._expire)
        self._watchdog.daemon = True
        self.expired = False

    def __enter__(self) -> Deadline:
        self._watchdog.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watchdog.cancel()
        self._release()

    def remaining(self) -> float:
        """Seconds left; raises TimeoutError when there are none."""
        left = self._end - time.monotonic()
        if self.expired or left <= 0:
            raise TimeoutError("the deadline is over")
        return left

    def guard(self, connection: socket.socket) -> None:
        """Watch this connection from now on, instead of an earlier one.

        A duplicate descriptor is kept: shutting it down ends the connection, and it cannot be reused by another
        thread's socket in the meantime.
        """
        duplicate = socket.socket(fileno=os.dup(connection.fileno()))
        self._release()
        with self._lock:
            self._connection = duplicate
        if self.expired:
            self._expire()

    def _release(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _expire(self) -> None:
        self.expired = True
        with self._lock, suppress(OSError):
            if self._connection is not None:
                self._connection.shutdown(socket.SHUT_RDWR)


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
                addresses = list(answers.pop(0) if len(answers) > 1 else answers[0])
            else:
                infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
            lookup.set_result(addresses)
        except BaseException as error:
            with self._lock:
                self._lookups.pop(host, None)
            lookup.set_exception(error)


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
        addresses = self.resolver.addresses(host, self.deadline.remaining())
        permitted = addresses if trusted else [address for address in addresses if is_public(address)]
        if not permitted:
            raise FetchFailure("blocked_address", f"{host} is {', '.join(addresses[:MAX_ADDRESSES]) or 'nowhere'}")
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


def trusted_certificates() -> ssl.SSLContext:
    """The system's certificate authorities; certifi's on a system without any (slim containers)."""
    paths = ssl.get_default_verify_paths()
    file, folder = Path(paths.cafile or ""), Path(paths.capath or "")
    if not file.is_file() and not (paths.capath and folder.is_dir() and any(folder.iterdir())):
        with suppress(ImportError):
            import certifi

            return ssl.create_default_context(cafile=certifi.where())
    return ssl.create_default_context()
