from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.core.errors import ConfigError
from cdkit.deltas.low_rank import LowRank, approximate, cut, factors, matrix, rank_for, relative_error

shapes = st.tuples(st.integers(1, 30), st.integers(1, 30))


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 10**6), st.integers(1, 30))
def test_any_rank_is_the_best_of_that_rank(shape: tuple[int, int], seed: int, rank: int) -> None:
    change = _random(seed, *shape)
    product, values = factors(change)
    exact = torch.linalg.svdvals(change.double())
    assert torch.allclose(values, exact[: len(values)], atol=1e-6 * float(exact[0]))
    part = cut(product, rank)
    best = float((exact[rank:] ** 2).sum().sqrt() / exact.norm())
    assert relative_error(change, part) == pytest.approx(best, abs=1e-5)
    assert part.rank <= rank


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 10**6), st.floats(0.01, 0.9))
def test_the_smallest_rank_within_an_error(shape: tuple[int, int], seed: int, error: float) -> None:
    change = _random(seed, *shape)
    product, values = factors(change)
    rank = rank_for(values, error)
    assert relative_error(change, cut(product, rank)) <= error + 1e-5
    if rank > 1:
        assert relative_error(change, cut(product, rank - 1)) > error - 1e-5


def test_a_product_keeps_its_own_rank_exactly() -> None:
    change = LowRank(_random(1, 40, 3), 1e4 * _random(2, 3, 25))
    found = approximate({"a": change})["a"]
    assert found.rank == 3
    assert relative_error(change, found) < 1e-6
    # Balanced factors survive half precision, whatever the scales they came with.
    assert 0.1 < float(found.up.norm() / found.down.norm()) < 10
    full = approximate({"a": matrix(change)})["a"]
    assert full.rank == 3


def test_one_rank_for_all_is_the_largest_needed() -> None:
    changes = {"low": LowRank(_random(1, 9, 2), _random(2, 2, 9)), "high": LowRank(_random(3, 9, 5), _random(4, 5, 9))}
    assert {name: one.rank for name, one in approximate(changes).items()} == {"low": 2, "high": 5}
    same = approximate(changes, uniform=True)
    assert {name: one.rank for name, one in same.items()} == {"low": 5, "high": 5}
    assert max(relative_error(changes[name], same[name]) for name in changes) < 1e-6
    assert {name: one.rank for name, one in approximate(changes, rank=1).items()} == {"low": 1, "high": 1}


def test_nothing_and_what_is_no_matrix() -> None:
    assert relative_error(torch.zeros(3, 4), approximate({"a": torch.zeros(3, 4)})["a"]) == 0.0
    with pytest.raises(ConfigError, match="no matrix"):
        approximate({"bias": torch.ones(3)})
