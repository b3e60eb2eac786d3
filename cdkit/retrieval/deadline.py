"""The time one fetch has: a watchdog ends its connection, whatever it is waiting for."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType


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
