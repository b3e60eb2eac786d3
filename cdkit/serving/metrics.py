"""What a service has done, in the text format that Prometheus reads."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# Upper bounds of the buckets of request times, in seconds.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass
class RequestTimes:
    """Requests by path and status, and how long each path took."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    buckets: dict[str, list[int]] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.time)

    def record(self, path: str, status: int, seconds: float) -> None:
        self.requests[path, status] += 1
        self.seconds[path] += seconds  # type: ignore[assignment]
        counts = self.buckets.setdefault(path, [0] * (len(BOUNDS) + 1))
        counts[bisect_left(BOUNDS, seconds)] += 1

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of it; gauges: further numbers by name."""
        return "\n".join([*self._requests(), *self._times(), *_gauges({**gauges, "started": self.started})]) + "\n"

    def _requests(self) -> Iterator[str]:
        yield "# TYPE cdkit_requests_total counter"
        for (path, status), count in sorted(self.requests.items()):
            yield f'cdkit_requests_total{{path="{path}",status="{status}"}} {count}'

    def _times(self) -> Iterator[str]:
        yield "# TYPE cdkit_request_seconds histogram"
        for path, counts in sorted(self.buckets.items()):
            running = 0
            for bound, count in zip((*BOUNDS, "+Inf"), counts, strict=True):
                running += count
                yield f'cdkit_request_seconds_bucket{{path="{path}",le="{bound}"}} {running}'
            yield f'cdkit_request_seconds_sum{{path="{path}"}} {self.seconds[path]:.6f}'
            yield f'cdkit_request_seconds_count{{path="{path}"}} {running}'


def _gauges(values: Mapping[str, float]) -> Iterator[str]:
    for name, value in values.items():
        yield f"# TYPE cdkit_{name} gauge"
        yield f"cdkit_{name} {value:g}"
