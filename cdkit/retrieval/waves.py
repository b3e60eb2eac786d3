"""How many URLs the next wave tries, in which order they are fetched, and how long it may take."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

SMALLEST_WAVE = 16
LARGEST_WAVE = 2000
# Weight of the survival expected against the one measured, in URLs.
PRIOR_WEIGHT = 8
STARTING_SECONDS = 30.0

Item = TypeVar("Item")


def wave_size(missing: int, *, tried: int, accepted: int, survival: float) -> int:
    """URLs to try for `missing` more images: the first wave by the survival expected, later ones by that measured.

    Later waves add two standard deviations of a binomial draw, because another wave costs more than a few URLs.
    """
    if missing <= 0:
        return 0
    if tried == 0:
        wanted = math.ceil(missing / survival)
    else:
        rate = (accepted + PRIOR_WEIGHT * survival) / (tried + PRIOR_WEIGHT)
        wanted = math.ceil(missing / rate + 2 * math.sqrt(missing * (1 - rate)) / rate)
    return min(LARGEST_WAVE, max(SMALLEST_WAVE, wanted))


def wave_bound(count: int, threads: int, deadline: float) -> float:
    """The longest a wave may take, in seconds: every thread busy to the deadline every time, and the start."""
    return math.ceil(count / threads) * deadline + STARTING_SECONDS


def spread_hosts(items: Sequence[Item], hosts: Sequence[str]) -> list[Item]:
    """The items in an order that takes turns between hosts, so that threads do not queue for one of them."""
    queues: dict[str, deque[Item]] = {}
    for item, host in zip(items, hosts, strict=True):
        queues.setdefault(host, deque()).append(item)
    turns, ordered = deque(queues.values()), []
    while turns:
        queue = turns.popleft()
        ordered.append(queue.popleft())
        if queue:
            turns.append(queue)
    return ordered
