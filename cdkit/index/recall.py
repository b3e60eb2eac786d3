"""Recall of an index, measured with queries that are not in it against brute force, and the settings that reach it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.index.brute_force import Queries, Truth, brute_force
from cdkit.index.faiss_index import OpenIndex, estimates, id_selector

if TYPE_CHECKING:
    import numpy as np

SAMPLE = 1_000_000
RECALL_TARGET = 0.99
EXACT_MARGIN = 1e-3
# Of the errors of quantisation, the margin covers all but one in a thousand.
MARGIN_QUANTILE = 0.999


@dataclass(frozen=True)
class Recall:
    """What the manifest says about an index: what was measured, with which settings, and whether that is enough.

    threshold_recall is None when no query has a neighbour; target_reached when there is nothing to tell it from.
    """

    queries: int
    held_out_captions: int
    queries_without_neighbours: int
    sample: int
    threshold: float
    neighbours: int
    threshold_recall: float | None
    worst_tenth: float | None
    top_200_recall: float | None
    nprobe: int
    margin: float
    measured_vectors: int
    target: float = RECALL_TARGET

    @property
    def reached(self) -> float | None:
        """The recall that the target is about: of the threshold, or of the best 200 where nothing is above it."""
        return self.threshold_recall if self.threshold_recall is not None else self.top_200_recall

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "target_reached": None if self.reached is None else self.reached >= self.target}


def recall_warnings(recall: Mapping[str, Any]) -> list[str]:
    """What there is to say about the `recall` entry of a manifest: a target that was missed, figures of before."""
    warnings = []
    if recall.get("target_reached") is False:
        value = recall["threshold_recall"] if recall["threshold_recall"] is not None else recall["top_200_recall"]
        warnings.append(
            f"The measured recall is {value:.5g}, below the target of {recall['target']:g}: similar captions will be "
            "missed. More --bytes-per-caption come nearer."
        )
    changes = Counter(recall.get("changed_since", ()))
    if changes:
        named = ", ".join(f"{number} × {change}" for change, number in changes.items())
        on = f" on {recall['measured_vectors']:,} vectors" if "measured_vectors" in recall else ""
        warnings.append(f"The recall was measured{on}, before the index changed ({named}).")
    return warnings


def measure(
    index: OpenIndex,
    embeddings: Sequence[Path],
    queries: Queries,
    *,
    threshold: float,
    seed: int,
    sample: int = SAMPLE,
    target: float = RECALL_TARGET,
    lists: int = 1,
) -> Recall:
    """Measure recall and choose what reaches `target`: the margin under the threshold, then the fewest probes.

    threshold recall = Σ over queries of |found ∩ S ∩ {similarity ≥ t}| / Σ |S ∩ {similarity ≥ t}| over the sample S;
    a caption counts as found when its estimate makes it a candidate, since candidates are re-ranked exactly.
    """
    truth = brute_force(embeddings, queries, threshold, seed=seed, sample=sample, total=index.count)
    margin = EXACT_MARGIN if index.layout_exact else estimate_margin(index, queries, truth)
    everything = len(truth.ids) + len(queries.held_out) >= index.count
    selector = id_selector(queries.held_out, excluded=True) if everything else id_selector(truth.ids)
    probes = [1] if index.layout_exact else [size for size in (2**power for power in range(2, 12)) if size <= lists]
    for nprobe in probes:
        found = _Found(index, queries.vectors, truth, threshold, margin, nprobe, selector)
        recall = replace(found.recall(len(queries.held_out), len(truth.ids)), target=target)
        if recall.reached is None or recall.reached >= target:
            break
    return recall


def estimate_margin(index: OpenIndex, queries: Queries, truth: Truth) -> float:
    """How far an estimate may fall below the true similarity, for all but one neighbour in a thousand."""
    import numpy as np

    if not len(truth.pair_vectors):
        return 0.05
    asked = queries.vectors[truth.pair_queries]
    true = np.einsum("ij,ij->i", asked, truth.pair_vectors)
    below = true - estimates(index.index, truth.pair_vectors, asked)
    return float(max(np.quantile(below, MARGIN_QUANTILE), EXACT_MARGIN))


@dataclass(frozen=True)
class _Found:
    """The candidates of every query under one setting, compared with the truth."""

    index: OpenIndex
    vectors: np.ndarray
    truth: Truth
    threshold: float
    margin: float
    nprobe: int
    selector: Any
    shares: list[float] = field(default_factory=list)

    def recall(self, held_out: int, sample: int) -> Recall:
        import numpy as np

        found, best, best_found = 0, 0, 0
        shares = []
        for number, vector in enumerate(self.vectors):
            neighbours, nearest = self.truth.neighbours[number], self.truth.best[number]
            if len(neighbours):
                hits = int(np.isin(neighbours, self._within(vector, self.threshold - self.margin)).sum())
                found += hits
                shares.append(hits / len(neighbours))
            if len(nearest):
                best += len(nearest)
                best_found += int(np.isin(nearest, self._best(vector, len(nearest))).sum())
        neighbours_in_all = sum(len(ids) for ids in self.truth.neighbours)
        worst = sorted(shares)[: max(1, len(shares) // 10)]
        return Recall(
            queries=len(self.vectors),
            held_out_captions=held_out,
            queries_without_neighbours=len(self.vectors) - len(shares),
            sample=sample,
            threshold=self.threshold,
            neighbours=neighbours_in_all,
            threshold_recall=round(found / neighbours_in_all, 5) if neighbours_in_all else None,
            worst_tenth=round(sum(worst) / len(worst), 5) if worst else None,
            top_200_recall=round(best_found / best, 5) if best else None,
            nprobe=self.nprobe,
            margin=round(self.margin, 6),
            measured_vectors=self.index.count,
        )

    def _within(self, vector: np.ndarray, least: float) -> np.ndarray:
        return self.index.within(vector, least, selector=self.selector, nprobe=self.nprobe).ids

    def _best(self, vector: np.ndarray, count: int) -> np.ndarray:
        """The candidates from which a search for the best `count` would re-rank."""
        top = self.index.top(vector, count, selector=self.selector, nprobe=self.nprobe)
        if not len(top.ids):
            return top.ids
        return self._within(vector, float(top.similarities[-1]) - 2 * self.margin)
