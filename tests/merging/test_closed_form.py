"""The mathematics of merging, as properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.core.errors import InputError
from cdkit.merging.closed_form import (
    averaged,
    collapse,
    condition_number,
    factorise,
    prepare_fusion,
    residual,
    solve,
    solve_nearly,
)

seeds = st.integers(0, 10**6)
DIMENSIONS, OUTPUTS, CONSTRAINTS = 24, 10, 6


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _rows(seed: int, condition: float, number: int = 200) -> torch.Tensor:
    """Regularization rows of a known condition."""
    left = torch.linalg.qr(_random(seed, number, DIMENSIONS)).Q
    right = torch.linalg.qr(_random(seed + 1, DIMENSIONS, DIMENSIONS)).Q
    return left * torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), DIMENSIONS).double() @ right


def _change(rows: torch.Tensor, features: torch.Tensor, errors: torch.Tensor, **options: float) -> torch.Tensor:
    """The merged change (outputs, dimensions) for constraint features (s, d) and errors (outputs, s)."""
    up, down = solve(factorise(rows, ridge=options.pop("ridge", 0.0)), features, **options).change(errors)
    return up @ down


def _objective(change: torch.Tensor, rows: torch.Tensor) -> float:
    return float(torch.linalg.norm(change @ rows.T) ** 2)


@settings(max_examples=12, deadline=None)
@given(seeds, st.sampled_from([1e1, 1e3, 1e4, 1e6]), st.sampled_from([0.0, 1e-3, 1e-1]))
def test_constraints_are_met(seed: int, condition: float, ridge: float) -> None:
    rows, features = _rows(seed, condition), _random(seed + 2, CONSTRAINTS, DIMENSIONS)
    weights, errors = _random(seed + 3, OUTPUTS, DIMENSIONS), _random(seed + 4, OUTPUTS, CONSTRAINTS)
    change = _change(rows, features, errors, ridge=ridge)
    targets = features @ weights.T + errors.T
    # What fp64 can say: the change itself may be as large as the condition.
    limit = 1e-10 * max(1.0, float(change.norm() / weights.norm()) * 1e-3)
    assert residual(weights + change, features, targets).max() <= limit
    assert torch.linalg.matrix_rank(change) <= CONSTRAINTS


@settings(max_examples=12, deadline=None)
@given(seeds)
def test_the_order_of_constraints_does_not_matter(seed: int) -> None:
    rows, features, errors = (
        _rows(seed, 1e2),
        _random(seed, CONSTRAINTS, DIMENSIONS),
        _random(seed, OUTPUTS, CONSTRAINTS),
    )
    order = torch.randperm(CONSTRAINTS, generator=torch.Generator().manual_seed(seed))
    one = _change(rows, features, errors)
    other = _change(rows, features[order], errors[:, order])
    assert (one - other).norm() <= 1e-10 * one.norm()


@settings(max_examples=12, deadline=None)
@given(seeds)
def test_a_concept_merged_with_itself_is_merged_once(seed: int) -> None:
    rows, features, errors = (
        _rows(seed, 1e2),
        _random(seed, CONSTRAINTS, DIMENSIONS),
        _random(seed, OUTPUTS, CONSTRAINTS),
    )
    once = _change(rows, features, errors)
    twice = _change(rows, torch.cat([features, features]), torch.cat([errors, errors], dim=1))
    assert (once - twice).norm() <= 1e-10 * once.norm()


@settings(max_examples=12, deadline=None)
@given(seeds)
def test_a_constraint_that_others_imply_changes_nothing(seed: int) -> None:
    rows, features, errors = (
        _rows(seed, 1e2),
        _random(seed, CONSTRAINTS, DIMENSIONS),
        _random(seed, OUTPUTS, CONSTRAINTS),
    )
    weights = _random(seed + 5, CONSTRAINTS, 1)
    implied, its_error = weights.T @ features, errors @ weights
    once = _change(rows, features, errors)
    again = _change(rows, torch.cat([features, implied]), torch.cat([errors, its_error], dim=1))
    assert (once - again).norm() <= 1e-9 * once.norm()


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_nothing_wanted_changes_nothing(seed: int) -> None:
    change = _change(
        _rows(seed, 1e3), _random(seed, CONSTRAINTS, DIMENSIONS), torch.zeros(OUTPUTS, CONSTRAINTS), ridge=1e-3
    )
    assert not change.any()


@settings(max_examples=12, deadline=None)
@given(seeds, st.sampled_from([1e1, 1e4]), st.sampled_from([1e-6, 1e-2, 1.0]))
def test_no_feasible_change_is_better(seed: int, condition: float, size: float) -> None:
    rows, features, errors = (
        _rows(seed, condition),
        _random(seed, CONSTRAINTS, DIMENSIONS),
        _random(seed, OUTPUTS, CONSTRAINTS),
    )
    best = _change(rows, features, errors)
    # A step that keeps every constraint: orthogonal to all constraint features.
    free = torch.linalg.svd(features).Vh[CONSTRAINTS:]
    step = _random(seed + 7, OUTPUTS, len(free)) @ free
    moved = best + size * step * best.norm() / step.norm()
    assert _objective(moved, rows) > _objective(best, rows) * (1 - 1e-10)


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_a_soft_merge_goes_from_nothing_to_the_exact_one(seed: int) -> None:
    rows, features, errors = (
        _rows(seed, 1e2),
        _random(seed, CONSTRAINTS, DIMENSIONS),
        _random(seed, OUTPUTS, CONSTRAINTS),
    )
    exact = _change(rows, features, errors)
    distances = [
        float((_change(rows, features, errors, soft=weight) - exact).norm() / exact.norm())
        for weight in (1e-12, 1e-3, 1.0, 1e9)
    ]
    assert distances[0] > 0.99
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3


def test_a_soft_merge_is_the_minimum_it_says() -> None:
    rows, features, errors = (
        _rows(3, 1e2),
        _random(3, CONSTRAINTS, DIMENSIONS),
        _random(4, OUTPUTS, CONSTRAINTS),
    )
    weight, number = 0.7, len(rows)
    found = _change(rows, features, errors, soft=weight)
    # The normal equations of mean ‖ΔW a‖² + weight ‖ΔW Cᵀ − E‖², solved directly.
    gram = rows.T @ rows / number + weight * features.T @ features
    assert torch.allclose(found, torch.linalg.solve(gram, weight * (errors @ features).T).T, atol=1e-10)


@pytest.mark.parametrize("number", [0, 5, 200])
def test_captions_that_do_not_span_the_space_are_refused_or_ridged(number: int) -> None:
    rows = _rows(0, 1e2, 200)
    rows = torch.cat([rows[:number], rows[:number]]) if number < 200 else rows * (torch.arange(DIMENSIONS) > 0)
    with pytest.raises(InputError, match="span fewer"):
        factorise(rows, ridge=0.0)
    if number:
        factor = factorise(rows, ridge=1e-3)
        assert factor.deficient
        features, errors = _random(1, CONSTRAINTS, DIMENSIONS), _random(2, OUTPUTS, CONSTRAINTS)
        up, down = solve(factor, features).change(errors)
        assert torch.allclose(up @ down @ features.T, errors, atol=1e-8)


def test_the_ridge_keeps_the_change_small_where_captions_say_nothing() -> None:
    rows = _rows(0, 1e2) * (torch.arange(DIMENSIONS) > 2)
    features, errors = _random(1, CONSTRAINTS, DIMENSIONS), _random(2, OUTPUTS, CONSTRAINTS)
    sizes = [float(_change(rows, features, errors, ridge=ridge).norm()) for ridge in (1e-5, 1e-2, 1.0)]
    smallest = float((errors @ torch.linalg.pinv(features.T)).norm())
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == pytest.approx(smallest, rel=0.2)


@pytest.mark.parametrize("condition", [1e1, 1e4, 1e6])
def test_the_condition_is_measured(condition: float) -> None:
    factor = factorise(_rows(5, condition, 500))
    assert factor.condition == pytest.approx(condition, rel=0.1)
    assert not factor.deficient
    assert condition_number(torch.zeros(3, 3)) == float("inf")


def test_an_ill_conditioned_factor_is_as_exact_as_a_qr() -> None:
    rows = _rows(6, 1e6, 300)
    gram = rows.T @ rows / len(rows)
    found = factorise(rows, ridge=0.0).triangle
    assert torch.allclose(found.T @ found, gram, atol=1e-15)
    smallest = torch.linalg.svdvals(rows)[-1] / len(rows) ** 0.5
    assert float(torch.linalg.svdvals(found)[-1]) == pytest.approx(float(smallest), rel=1e-8)


def test_near_duplicates_are_one_group() -> None:
    rows = _random(8, 3, DIMENSIONS)
    several = torch.stack([rows[0], rows[1], rows[0] * (1 + 1e-7), rows[2], rows[1] + 1e-3])
    groups = collapse(several, 1e-5)
    assert groups == [0, 1, 0, 3, 4]
    means = averaged(several, groups)
    assert means.shape == (4, DIMENSIONS)
    assert torch.allclose(means[0], rows[0], atol=1e-6)
    assert torch.equal(means[2], rows[2])


@settings(max_examples=12, deadline=None)
@given(seeds, st.sampled_from([0.01, 1.0, 100.0]))
def test_what_is_met_nearly_takes_nothing_from_what_is_met_exactly(seed: int, weight: float) -> None:
    rows, firm = _rows(seed, 1e2), _random(seed + 1, CONSTRAINTS, DIMENSIONS)
    # More than there are dimensions: no change could meet them all.
    loose, errors = (
        _random(seed + 2, 2 * DIMENSIONS, DIMENSIONS),
        _random(seed + 3, OUTPUTS, CONSTRAINTS + 2 * DIMENSIONS),
    )
    factor = factorise(rows, ridge=0.1)
    up, down = solve_nearly(factor, firm, loose, weight=weight).change(errors)
    change = up @ down
    assert (change @ firm.T - errors[:, :CONSTRAINTS]).norm() <= 1e-9 * errors.norm()
    # The best of all that meet the firm ones: its gradient is theirs alone.
    square = factor.triangle.T @ factor.triangle
    gradient = change @ square + weight * (change @ loose.T - errors[:, CONSTRAINTS:]) @ loose
    span = torch.linalg.qr(firm.T).Q
    assert (gradient - gradient @ span @ span.T).norm() <= 1e-8 * gradient.norm()


@settings(max_examples=12, deadline=None)
@given(seeds)
def test_fusion_is_where_gradient_descent_would_end(seed: int) -> None:
    features = [_random(seed + place, 40, DIMENSIONS) for place in range(3)]
    changes = [_random(seed + 10 + place, OUTPUTS, DIMENSIONS) for place in range(3)]
    fused = prepare_fusion(features, ridge=1e-6).change(changes).requires_grad_()
    loss = sum(((fused - own) @ rows.T).square().sum() for own, rows in zip(changes, features, strict=True))
    (gradient,) = torch.autograd.grad(torch.as_tensor(loss), fused)
    assert gradient.norm() <= 1e-6 * torch.as_tensor(loss).detach()


def test_fusion_keeps_what_only_one_concept_shows() -> None:
    # Two concepts in directions of their own: each keeps its change there.
    basis = torch.eye(DIMENSIONS, dtype=torch.float64)
    features = [basis[:4], basis[4:9]]
    changes = [_random(1, OUTPUTS, DIMENSIONS), _random(2, OUTPUTS, DIMENSIONS)]
    fused = prepare_fusion(features, ridge=1e-4).change(changes)
    for own, rows in zip(changes, features, strict=True):
        assert ((fused - own) @ rows.T).norm() < 1e-5 * (own @ rows.T).norm()
    assert fused[:, 9:].norm() < 1e-9
