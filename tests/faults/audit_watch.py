"""What Python's audit hooks say of this process, while somebody asks."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class AuditWatch(ABC):
    """A hook, which stays for the life of the process, and listens within `watching` alone."""

    def __init__(self) -> None:
        self._active = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._active:
            self.happened(event, arguments)

    @abstractmethod
    def happened(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called with every event; what it raises stops what was about to be done."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._active = True
        try:
            yield
        finally:
            self._active = False
