"""Sizes and bounds of batches, and the turns of hosts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.fetching.batches import LARGEST_WAVE, spread_hosts, wave_bound, wave_size
from cdkit.fetching.job import FetchSettings


def test_the_first_wave_follows_the_survival_expected_and_the_next_the_one_measured() -> None:
    assert wave_size(200, tried=0, accepted=0, survival=0.5) == 400
    after_good = wave_size(20, tried=300, accepted=280, survival=0.5)
    after_bad = wave_size(20, tried=300, accepted=30, survival=0.5)
    assert 20 <= after_good < 35
    assert 150 < after_bad < 320
    assert wave_size(0, tried=10, accepted=10, survival=0.5) == 0
    assert wave_size(10**9, tried=0, accepted=0, survival=0.5) == LARGEST_WAVE


@pytest.mark.parametrize("survival", [1.0, 0.93, 0.87, 0.75, 0.6, 0.4, 0.15])
def test_few_urls_are_tried_for_nothing(survival: float) -> None:
    """Over many draws, no survival takes more than 1.2 tries per image that was possible."""
    draw = random.Random(0)
    tries = []
    for _ in range(200):
        tried = accepted = 0
        while accepted < 200:
            size = wave_size(200 - accepted, tried=tried, accepted=accepted, survival=FetchSettings().survival)
            tried += size
            accepted += sum(draw.random() < survival for _ in range(size))
        tries.append(tried)
    assert sum(tries) / len(tries) / 200 <= 1.2 / survival


def test_a_wave_is_bounded() -> None:
    assert wave_bound(64, 32, 15.0) == 60
    assert wave_bound(65, 32, 15.0) == 75


@given(st.lists(st.sampled_from("abc")))
def test_hosts_take_turns_and_nobody_is_lost(hosts: list[str]) -> None:
    items = list(range(len(hosts)))
    ordered = spread_hosts(items, hosts)
    assert sorted(ordered) == items
    for host in "abc":
        places = [item for item in ordered if hosts[item] == host]
        assert places == sorted(places)
    if len(set(hosts)) > 1:
        assert len({hosts[item] for item in ordered[: len(set(hosts))]}) == len(set(hosts))
