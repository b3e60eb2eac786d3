"""Merging two concepts on the shapes of real models: cdkit against the textbook way, both from the same arrays.

The textbook: fp32 normal equations, an LU per matrix, and a solve per constraint row, as in the published code. Both
sides make all merged matrices; they take turns. cdkit runs with the merge stage's own ridge, the textbook has none;
figures without the ridge stand beside. Residuals are measured in fp64 on the merged matrices in fp32.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

from cdkit.core.formatting import json_text
from cdkit.merging.closed_form import factorise, residual, solve, solve_nearly
from cdkit.merging.config import MergeConfig
from tests.support.real_names import cross_attention_shapes

# Two concepts of two prompts each with a modifier, a category word and the end of text.
CONSTRAINTS = 12
CAPTION_ROWS = 15_000
RIDGE = float(MergeConfig.model_fields["ridge"].default)
NEAR_WEIGHT = float(MergeConfig.model_fields["near_weight"].default)


def textbook(
    weights: Sequence[np.ndarray], tuned: Sequence[np.ndarray], caption_rows: np.ndarray, features: np.ndarray
) -> list[np.ndarray]:
    """W = W0 + (V − W0 Cᵀ)(d Cᵀ)⁻¹ d with d = C (C_regᵀ C_reg)⁻¹, matrix by matrix; tuned holds Vᵀ per matrix."""
    merged = []
    for weight, values in zip(weights, tuned, strict=True):
        gram = caption_rows.T @ caption_rows
        factors = scipy.linalg.lu_factor(gram)
        d = np.stack([scipy.linalg.lu_solve(factors, row) for row in features])
        v = np.linalg.inv(d @ features.T).T @ (values - features @ weight.T)
        merged.append(weight + v.T @ d)
    return merged


def ours(
    weights: Sequence[torch.Tensor],
    tuned: Sequence[torch.Tensor],
    rows: torch.Tensor,
    features: torch.Tensor,
    ridge: float,
) -> list[torch.Tensor]:
    """The same matrices by cdkit's closed form."""
    directions = solve(factorise(rows, ridge=ridge), features)
    merged = []
    for weight, values in zip(weights, tuned, strict=True):
        up, down = directions.change(values.double().T - weight.double() @ features.double().T)
        merged.append(weight + up.float() @ down.float())
    return merged


@dataclass(frozen=True)
class Trial:
    """Arrays of one model family and condition number."""

    weights: list[torch.Tensor]
    tuned: list[torch.Tensor]
    rows: torch.Tensor
    features: torch.Tensor


def make_trial(family: str, condition: float, seed: int = 0) -> Trial:
    """Caption rows of a known condition, features among them, and targets a few per cent off the base's values."""
    random = torch.Generator().manual_seed(seed)
    shapes = list(cross_attention_shapes(family).values())
    width = shapes[0][1]
    spread = torch.logspace(0, -np.log10(condition), width)
    turned = torch.linalg.qr(torch.randn(width, width, generator=random)).Q
    rows = (torch.randn(CAPTION_ROWS, width, generator=random) * spread) @ turned * width**0.5
    features = (torch.randn(CONSTRAINTS, width, generator=random) * spread) @ turned * width**0.5
    weights = [torch.randn(shape, generator=random) / width**0.5 for shape in shapes]
    values = [features @ weight.T for weight in weights]
    tuned = [one + 0.3 * one.std() * torch.randn(one.shape, generator=random) for one in values]
    return Trial(weights, tuned, rows, features)


def measure(trial: Trial, rounds: int, *, with_textbook: bool) -> dict[str, float]:
    """Median seconds of both sides and the largest residual of each."""
    sides: dict[str, Callable[[], Sequence[torch.Tensor | np.ndarray]]] = {
        "cdkit": lambda: ours(trial.weights, trial.tuned, trial.rows, trial.features, RIDGE),
        "cdkit_no_ridge": lambda: ours(trial.weights, trial.tuned, trial.rows, trial.features, 0.0),
    }
    if with_textbook:
        arrays = ([weight.numpy() for weight in trial.weights], [one.numpy() for one in trial.tuned])
        sides["textbook"] = lambda: textbook(*arrays, trial.rows.numpy(), trial.features.numpy())
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    errors: dict[str, float] = {}
    for _ in range(rounds):
        for name, run in sides.items():
            wall, busy = time.perf_counter(), time.process_time()
            merged = run()
            seconds[name].append(time.perf_counter() - wall)
            cpu[name].append(time.process_time() - busy)
            errors[name] = max(
                float(residual(torch.as_tensor(one), trial.features, values).max())
                for one, values in zip(merged, trial.tuned, strict=True)
            )
    found: dict[str, float] = {}
    for name in sides:
        found |= {
            f"{name}_seconds": round(statistics.median(seconds[name]), 3),
            f"{name}_cpu_seconds": round(statistics.median(cpu[name]), 3),
            f"{name}_constraint_residual": errors[name],
        }
    if with_textbook:
        ratios = [slow / fast for slow, fast in zip(seconds["textbook"], seconds["cdkit"], strict=True)]
        found["speedup"] = round(statistics.median(ratios), 1)
        busy_ratios = [slow / fast for slow, fast in zip(cpu["textbook"], cpu["cdkit"], strict=True)]
        found["speedup_cpu"] = round(statistics.median(busy_ratios), 1)
    return found


def measure_many(concepts: int, rounds: int) -> dict[str, float]:
    """Seconds for many concepts as the merge stage solves them: words in their shortest prompts exactly, words behind
    every other concept (three places each) nearly, all of Stable Diffusion 1's matrices changed."""
    trial = make_trial("sd1", 1e2)
    random = torch.Generator().manual_seed(1)
    exact, near = CONSTRAINTS // 2 * concepts, 3 * concepts * (concepts - 1)
    places = torch.randint(len(trial.rows), (exact + near,), generator=random)
    features = (trial.rows[places] + 0.1 * torch.randn(len(places), trial.rows.shape[1], generator=random)).double()
    added = [0.3 * features.float() @ weight.T for weight in trial.weights]
    wall, busy, error = [], [], 0.0
    for _ in range(rounds):
        clocks = time.perf_counter(), time.process_time()
        factor = factorise(trial.rows, ridge=RIDGE)
        directions = solve_nearly(factor, features[:exact], features[exact:], weight=NEAR_WEIGHT)
        changes = [directions.change(values.double().T) for values in added]
        wall.append(time.perf_counter() - clocks[0])
        busy.append(time.process_time() - clocks[1])
        for (up, down), values in zip(changes, added, strict=True):
            got = features[:exact] @ down.T @ up.T
            error = max(error, float(((got - values[:exact]).norm(dim=1) / values[:exact].norm(dim=1)).max()))
    return {
        "concepts": concepts,
        "exact_places": exact,
        "near_places": near,
        "seconds": round(statistics.median(wall), 3),
        "cpu_seconds": round(statistics.median(busy), 3),
        "constraint_residual": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="of both sides; set OMP_NUM_THREADS too"
    )
    parser.add_argument("--concepts", type=int, help="time only so many concepts on Stable Diffusion 1's shapes")
    parser.add_argument("--no-sdxl", action="store_true", help="leave out SDXL's 140 matrices")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.concepts:
        print(json_text({"benchmark": "merge-many", **measure_many(arguments.concepts, arguments.rounds)}))
        return
    found: dict[str, dict[str, float]] = {}
    for condition in (1e2, 1e4):
        found[f"sd1_{condition:.0e}"] = measure(make_trial("sd1", condition), arguments.rounds, with_textbook=True)
        print(f"sd1, condition {condition:.0e}: {found[f'sd1_{condition:.0e}']}", flush=True)
    if not arguments.no_sdxl:
        # The textbook's 140 factorisations of 2,048 dimensions take minutes, and its published code knows only 768.
        found["sdxl_1e+02"] = measure(make_trial("sdxl", 1e2), 1, with_textbook=False)
        print(f"sdxl: {found['sdxl_1e+02']}", flush=True)
    stable = [found["sd1_1e+02"], found["sd1_1e+04"]]
    figures = {
        "speedup_vs_textbook": min(one["speedup"] for one in stable),
        "constraint_residual": max(one["cdkit_constraint_residual"] for one in found.values()),
        "textbook_residual": {name: one.get("textbook_constraint_residual") for name, one in found.items()},
        "matrices": len(cross_attention_shapes("sd1")),
        "speedup_cpu_seconds": min(one["speedup_cpu"] for one in stable),
        "caption_rows": CAPTION_ROWS,
        "ridge": RIDGE,
        "constraints": CONSTRAINTS,
        "threads": arguments.threads,
        "trials": found,
    }
    print(json_text(figures))


if __name__ == "__main__":
    main()
