"""Progress that keeps what a stage says, for tests to look at."""

from __future__ import annotations

from cdkit.core.protocols import SilentProgress


class Notes(SilentProgress):
    """Progress that keeps the notes it is given."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)
