"""The last word on every connection of a process: an audit hook that no library call gets past."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cdkit.retrieval.addresses import WEB_PORTS, is_public
from cdkit.retrieval.failures import FetchFailure

_EVENTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_vetted = threading.local()


@contextmanager
def vetted(address: str, port: int) -> Iterator[None]:
    """Let this thread connect to one address and port that would be blocked; for exempt hosts and the proxy."""
    _vetted.place = (address, port)
    try:
        yield
    finally:
        _vetted.place = None


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


def install_audit_hook() -> None:
    """Refuse forbidden connections in this process from now on; it cannot be taken back."""
    sys.addaudithook(_check)


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    # Datagrams on connected sockets name no address: their connect was checked.
    if event in _EVENTS and not (event == "socket.sendmsg" and arguments[1] is None) and not permits(arguments[1]):
        raise FetchFailure("blocked_address", str(arguments[1])[:100])
