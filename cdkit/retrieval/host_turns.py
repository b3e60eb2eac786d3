"""A few fetches from one host at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cdkit.retrieval.failures import DEFERRED, FetchFailure


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
        host that hangs takes one wave per try, not one per few URLs.
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
