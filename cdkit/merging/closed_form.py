"""Merging as constrained least squares (Custom Diffusion, equations 4 and 5): tensors in, tensors out, in fp64.

min over W of ‖(W − W₀) Aᵀ‖² + λ²‖W − W₀‖² such that W cⱼ = vⱼ for every constraint j, where the rows of A are text
features of ordinary captions. With RᵀR = AᵀA + λ²I, B = R⁻ᵀCᵀ and errors E = V − W₀Cᵀ the solution is W₀ + E B⁺ R⁻ᵀ.
R and B are the same for every matrix of the model, and the change has at most as many ranks as there are constraints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from cdkit.core.errors import InputError

# Up to here the Cholesky factor of AᵀA in fp64 is as good as a QR of A, and takes a third of its time.
SAFE_CONDITION = 1e5
# Text features come in fp32: directions below this part of the strongest are rounding.
SINGULAR_CONDITION = 1e7
RANK_TOLERANCE = 1e-10
_POWER_STEPS = 30
_BLOCK = 4096


@dataclass(frozen=True)
class Factor:
    """What every layer shares: R (d, d), upper triangular, of the rows and the ridge; R (d, d) of the rows alone.

    condition: of the rows as they came, inf when they do not span the space. ridge: λ over the rows' mean norm.
    """

    triangle: torch.Tensor
    rows: torch.Tensor
    condition: float
    ridge: float

    @property
    def deficient(self) -> bool:
        """Whether the rows leave directions open that only the ridge decides."""
        return self.condition > SINGULAR_CONDITION


@dataclass(frozen=True)
class Directions:
    """The part of the solution that all layers share: a layer's change is (errors @ mix) @ down.

    mix (constraints, rank), down (rank, d) with orthonormal rows.
    """

    mix: torch.Tensor
    down: torch.Tensor

    def change(self, errors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors up (outputs, rank), down (rank, d) of one layer's change for its errors (outputs, constraints)."""
        return errors.double() @ self.mix, self.down


def factorise(rows: torch.Tensor, *, ridge: float = 1e-3) -> Factor:
    """Factor the regularization rows (n, d) once for all layers; rows are weighted by scaling them beforehand.

    ridge: λ as a part of ‖rows‖/√d, their root mean square singular value. Raises InputError when the rows do not
    span the space and ridge is 0, for then the smallest change is not defined.
    """
    size, number = rows.shape[1], max(len(rows), 1)
    # The mean over rows instead of their sum: a soft weight then means the same for any number of captions.
    gram = _gram(rows) / number
    penalty = ridge * (float(gram.trace()) / size) ** 0.5
    plain, plain_condition = _cholesky(gram)
    if plain is None or plain_condition > SAFE_CONDITION:
        plain = _triangle(rows.double()) / number**0.5
        plain_condition = condition_number(plain)
    if plain_condition > SINGULAR_CONDITION and not penalty:
        raise InputError(
            f"The regularization captions span fewer than the {size} dimensions of the text features.",
            hint="Give more captions, or --ridge 1e-3.",
        )
    if not penalty:
        return Factor(plain, plain, plain_condition, 0.0)
    ridged, condition = _cholesky(gram + penalty**2 * torch.eye(size, dtype=gram.dtype))
    if ridged is None or condition > SAFE_CONDITION:
        ridged = _triangle(torch.cat([plain, penalty * torch.eye(size, dtype=gram.dtype)]))
    return Factor(ridged, plain, plain_condition, ridge)


def solve(
    factor: Factor, constraints: torch.Tensor, *, soft: float | None = None, tolerance: float = RANK_TOLERANCE
) -> Directions:
    """The shared part of the solution for constraint features (s, d); every constraint is met where that is possible.

    Constraints that say nothing new (duplicates, combinations of others) collapse: singular values of the row-scaled
    constraints below `tolerance` of the largest are dropped, and contradictions among them are met in the mean.
    soft: instead of exactly, meet them with this weight against the mean change of a regularization row.
    """
    features = constraints.double()
    solved = torch.linalg.solve_triangular(factor.triangle.T, features.T, upper=False)
    norms = solved.norm(dim=0).clamp_min(torch.finfo(solved.dtype).tiny)
    # The weight of a soft constraint is its own; a hard one may be scaled at will.
    scales = torch.ones_like(norms) if soft is not None else 1 / norms
    left, values, right = torch.linalg.svd(solved * scales, full_matrices=False)
    kept = values > tolerance * values.max() if len(values) else values > 0
    left, values, right = left[:, kept], values[kept], right[kept]
    gains = 1 / values if soft is None else values / (values**2 + 1 / soft)
    mix = scales[:, None] * right.T * gains
    raw = torch.linalg.solve_triangular(factor.triangle, left, upper=True)
    down, coupling = torch.linalg.qr(raw)
    return Directions(mix @ coupling.T, down.T.contiguous())


def solve_nearly(factor: Factor, firm: torch.Tensor, loose: torch.Tensor, *, weight: float) -> Directions:
    """The solution that meets firm constraints (s, d) exactly and loose ones (t, d) as far as these allow.

    A loose one weighs as `weight` against the mean change of a regularization row, as a soft one does. Errors come as
    (outputs, s + t), firm ones first. With R'ᵀR' = RᵀR + w LᵀL the loose part alone is E w L (R'ᵀR')⁻¹; what is
    then off at the firm ones is put right by their own directions under R'.
    """
    stacked = torch.cat([factor.triangle, weight**0.5 * loose.double()])
    both = Factor(_triangle(stacked), factor.rows, factor.condition, factor.ridge)
    gains = weight * torch.cholesky_solve(loose.double().T, both.triangle, upper=True).T
    directions = solve(both, firm)
    exact = directions.mix @ directions.down
    maps = torch.cat([exact, gains - gains @ firm.double().T @ exact])
    down, coupling = torch.linalg.qr(maps.T)
    return Directions(coupling.T, down.T.contiguous())


@dataclass(frozen=True)
class Fusion:
    """Least squares over what each concept's own prompts show (gradient fusion: Gu et al. 2023, arXiv 2305.18292).

    min over D of Σᵢ ‖(D − Dᵢ) Xᵢᵀ‖² / nᵢ + λ² ‖D‖² for changes Dᵢ and features Xᵢ (nᵢ, d): in closed form, where
    they descend. solved: Gᵢ (Σ Gᵢ + λ²)⁻¹ of every concept, (d, d) each; the same for all layers.
    """

    solved: tuple[torch.Tensor, ...]

    def change(self, changes: Sequence[torch.Tensor]) -> torch.Tensor:
        """The fused change (outputs, d) of one layer."""
        return sum_of(change.double() @ part for change, part in zip(changes, self.solved, strict=True))


def prepare_fusion(features: Sequence[torch.Tensor], *, ridge: float) -> Fusion:
    """ridge: λ as a part of the features' root mean square singular value."""
    grams = [_gram(rows) / max(len(rows), 1) for rows in features]
    total = sum_of(grams)
    size = len(total)
    total = total + ridge**2 * float(total.trace()) / size * torch.eye(size, dtype=total.dtype)
    return Fusion(tuple(torch.linalg.solve(total, gram).T for gram in grams))


def sum_of(matrices: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of at least one matrix."""
    return torch.stack(list(matrices)).sum(dim=0)


def collapse(features: torch.Tensor, tolerance: float) -> list[int]:
    """For each constraint row the first row that it equals within `tolerance` of its norm: itself when it is new."""
    rows = features.double()
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    near = distances <= tolerance * rows.norm(dim=1)[:, None]
    first: list[int] = []
    for index, same in enumerate(near.tolist()):
        leaders = [first[other] for other in range(index) if same[other]]
        first.append(min(leaders, default=index))
    return first


def averaged(values: torch.Tensor, groups: Sequence[int]) -> torch.Tensor:
    """Means of the rows of each group, groups in order of their first row."""
    leaders = sorted(set(groups))
    return torch.stack(
        [values[[i for i, group in enumerate(groups) if group == leader]].mean(0) for leader in leaders]
    )


def residual(weights: torch.Tensor, constraints: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Per constraint ‖W cⱼ − vⱼ‖ / ‖vⱼ‖ for weights (outputs, d), features (s, d) and targets (s, outputs)."""
    reached = constraints.double() @ weights.double().T
    wanted = targets.double()
    relative: torch.Tensor = (reached - wanted).norm(dim=1) / wanted.norm(dim=1).clamp_min(1e-300)
    return relative


def condition_number(triangle: torch.Tensor) -> float:
    """The condition of an upper triangular matrix by power iteration, from below and within a few per cent."""
    diagonal = triangle.diagonal().abs()
    if not len(diagonal) or float(diagonal.min()) <= 1e-300 or not bool(diagonal.isfinite().all()):
        return float("inf")
    start = torch.ones(len(diagonal), 1, dtype=triangle.dtype)
    # A fixed start that no structure of the features is orthogonal to.
    start = start + 0.5 * torch.sin(torch.arange(1.0, len(diagonal) + 1, dtype=triangle.dtype))[:, None]
    largest = smallest = start / start.norm()
    high = low = torch.ones((), dtype=triangle.dtype)
    for _ in range(_POWER_STEPS):
        largest = triangle.T @ (triangle @ largest)
        high = largest.norm()
        largest = largest / high
        smallest = torch.linalg.solve_triangular(triangle.T, smallest, upper=False)
        smallest = torch.linalg.solve_triangular(triangle, smallest, upper=True)
        low = smallest.norm()
        if not bool(low.isfinite()):
            return float("inf")
        smallest = smallest / low
    return float((high * low).sqrt())


def _gram(rows: torch.Tensor) -> torch.Tensor:
    """rowsᵀ rows in fp64, a block of rows at a time; numpy computes only half of a symmetric product."""
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for block in rows.split(_BLOCK):
        exact = block.double().numpy()
        total += torch.from_numpy(exact.T @ exact)
    return total


def _cholesky(gram: torch.Tensor) -> tuple[torch.Tensor | None, float]:
    """R of a Gram matrix and its condition; None when it is not positive definite in fp64."""
    lower, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        return None, float("inf")
    triangle = lower.T.contiguous()
    return triangle, condition_number(triangle)


def _triangle(matrix: torch.Tensor) -> torch.Tensor:
    """R (d, d) of a QR, also for fewer rows than columns."""
    size = matrix.shape[1]
    if len(matrix) < size:
        matrix = torch.cat([matrix, torch.zeros(size - len(matrix), size, dtype=matrix.dtype)])
    triangle: torch.Tensor = torch.linalg.qr(matrix, mode="r").R
    return triangle
