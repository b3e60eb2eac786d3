"""How far a piece of work is and how fast it goes: what bars, lines and a run's page are made of."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

EARLIEST_SHARE = 0.01  # of the work: by less, a rate is that of the start


@dataclass
class TaskRate:
    """Counts what is done of `total` units (None: unknown) of the work called `label`; began: a monotonic clock."""

    label: str
    total: float | None
    unit: str = ""
    done: float = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def left(self) -> float | None:
        """Seconds that the rest takes at this rate; None where that is not known, or too little is done to tell."""
        if not self.total or not self.done or self.done < EARLIEST_SHARE * self.total:
            return None
        return max(0.0, self.elapsed * (self.total - self.done) / self.done)

    def speed(self) -> str:
        """`120 steps/s`."""
        speed = self.done / self.elapsed if self.elapsed > 0 else 0
        number = f"{speed:,.0f}" if speed >= 100 else f"{speed:.2g}"
        return f"{number} {self.unit}/s" if self.unit else f"{number}/s"

    def share(self) -> str:
        """`40%`, or what is done of work without an end."""
        return f"{self.done / self.total:.0%}" if self.total else f"{self.done:,.0f}"

    def text(self) -> str:
        """`training: 40 of 250 steps`."""
        of = f" of {self.total:,.0f}" if self.total else ""
        return f"{self.label}: {self.done:,.0f}{of} {self.unit}".rstrip()
