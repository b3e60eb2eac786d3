"""Recall of an index, measured with queries that are not in it against brute force, and the settings that reach it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.protocols import Context, TextEncoder
from cdkit.core.storage import Folder
from cdkit.core.text import caption_id, clean_captions
from cdkit.core.threads import threads
from cdkit.index.brute_force import TOP, Pairs, Queries, Truth, brute_force
from cdkit.index.caption_index import INDEX_NAME
from cdkit.index.codes import Shards
from cdkit.index.faiss_index import OpenIndex, open_faiss
from cdkit.index.layout import RECALL_TARGET, IndexSettings, Layout
from cdkit.index.probing import Candidates, Probing
from cdkit.index.records import KeyedTable, Records

if TYPE_CHECKING:
    import numpy as np


EXACT_QUERIES = 50


def measure_recall(
    out: Folder,
    encoder: TextEncoder,
    layout: Layout,
    shards: Shards,
    held_out: np.ndarray,
    settings: IndexSettings,
    context: Context,
) -> Recall:
    """Recall with the held-out captions, and with class prompts that are not captions of this index."""
    import numpy as np

    from cdkit.index.search import encode_queries

    prompts = class_prompts()
    ids = np.array([caption_id(prompt) for prompt in clean_captions(prompts)], dtype=np.int64)
    tables = KeyedTable(out / "captions").rows(ids, ["caption_id"])
    indexed = {number for table in tables for number in table["caption_id"].to_pylist()}
    texts = list(Records(out.path).captions(held_out).values())
    texts += [prompt for prompt, number in zip(prompts, ids.tolist(), strict=True) if number not in indexed]
    if layout.exact:
        # Nothing is approximated but the last digits, so a few queries show that the file is whole.
        texts = texts[:: max(1, len(texts) // EXACT_QUERIES)]
    queries = Queries(encode_queries(encoder, texts), held_out)
    with context.progress.task("measuring recall", None) as task, threads(settings.threads):
        recall = measure(
            open_faiss(out / INDEX_NAME, exact=layout.exact, nprobe=1),
            shards.paths,
            queries,
            threshold=encoder.default_threshold,
            seed=settings.seed,
            target=settings.recall_target,
        )
        task.advance(len(texts))
    return recall


TEMPLATE = "a photo of a {}"
# fmt: off
WORDS = [
    "airplane", "apple", "backpack", "ball", "banana", "barn", "basket", "bathtub", "beach", "bear", "bed", "bench",
    "bicycle", "bird", "blanket", "boat", "book", "boot", "bottle", "bowl", "box", "bread", "bridge", "brush",
    "bucket", "building", "bus", "butterfly", "button", "cabin", "cable", "cake", "camera", "candle", "car",
    "carpet", "carrot", "castle", "cat", "chair", "cheese", "chicken", "child", "church", "circle", "city", "clock",
    "cloud", "coat", "coffee", "coin", "computer", "cookie", "couch", "cow", "crab", "cross", "crown", "cup",
    "curtain", "deer", "desk", "dinosaur", "dish", "doctor", "dog", "doll", "dolphin", "donkey", "door", "dragon",
    "dress", "drum", "duck", "eagle", "egg", "elephant", "engine", "eye", "face", "farm", "fence", "field",
    "fireplace", "fish", "flag", "flower", "fork", "fountain", "fox", "frog", "garden", "ghost", "giraffe", "glass",
    "glove", "goat", "guitar", "hammer", "hat", "heart", "helicopter", "helmet", "horse", "hospital", "house",
    "island", "jacket", "jar", "jellyfish", "kettle", "key", "keyboard", "kitchen", "kite", "knife", "ladder",
    "lake", "lamp", "leaf", "lemon", "library", "lighthouse", "lion", "lizard", "map", "market", "mask", "mirror",
    "monkey", "moon", "motorcycle", "mountain", "mouse", "mug", "mushroom", "necklace", "needle", "newspaper",
    "octopus", "orange", "oven", "owl", "painting", "palace", "panda", "parrot", "pen", "pencil", "penguin",
    "piano", "pie", "pig", "pillow", "pizza", "plate", "pot", "potato", "pumpkin", "rabbit", "raccoon", "ring",
    "river", "road", "robot", "rocket", "rooster", "rope", "sandwich", "school", "scissors", "shark", "sheep",
    "ship", "shirt", "shoe", "snail", "snake", "sofa", "spider", "spoon", "square", "squirrel", "stadium", "star",
    "statue", "stove", "strawberry", "street", "suitcase", "sun", "swan", "sword", "table", "teapot", "teddy",
    "telephone", "temple", "tent", "tiger", "toaster", "tomato", "towel", "tower", "toy", "tractor", "train",
    "tree", "triangle", "truck", "trumpet", "turtle", "umbrella", "vase", "violin", "waterfall", "whale", "wheel",
    "window", "wolf", "zebra",
]


def class_prompts() -> list[str]:
    """`a photo of a airplane` and so on; the article stays as CLIP's own templates have it."""
    return [TEMPLATE.format(word) for word in WORDS]


SAMPLE = 1_000_000
EXACT_MARGIN = 1e-3
UNKNOWN_MARGIN = 0.05
MOST_PROBES = 2048
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
) -> Recall:
    """Measure recall and choose what reaches `target`: the margin under the threshold, then the fewest probes.

    threshold recall = Σ over queries of |found ∩ S ∩ {similarity ≥ t}| / Σ |S ∩ {similarity ≥ t}| over the sample S;
    a caption counts as found when its estimate makes it a candidate, since candidates are re-ranked exactly.
    """
    truth = brute_force(embeddings, queries, threshold, seed=seed, sample=sample, total=index.count)
    everything = len(truth.ids) + len(queries.held_out) >= index.count
    probing = Probing(index, queries.vectors, queries.held_out if everything else truth.ids, excluded=everything)
    measurement = _Measured(probing, truth, threshold)
    measured = [level for level, probes in enumerate(probing.probes) if probes <= MOST_PROBES]
    for level in measured:
        if measurement.reached(level) >= target:
            break
    return measurement.recall(level, len(queries.held_out), target)


class _Measured:
    """The estimates of all true pairs, and what searches find of them at each level."""

    def __init__(self, probing: Probing, truth: Truth, threshold: float) -> None:
        import numpy as np

        self.probing, self.truth, self.threshold = probing, truth, threshold
        kinds = (truth.neighbours, truth.best, truth.learning)
        ends = np.cumsum([len(pairs.ids) for pairs in kinds])[:-1]
        estimates, levels = probing.estimates(
            np.concatenate([pairs.queries for pairs in kinds]), np.concatenate([pairs.ids for pairs in kinds])
        )
        self.neighbours, self.best, learned = np.split(estimates, ends)
        self.neighbour_levels, self.best_levels, _ = np.split(levels, ends)
        self.margin = self._margin(learned)
        self.queries = len(probing.queries)

    def _margin(self, estimates: np.ndarray) -> float:
        """How far an estimate may fall below the true similarity, for all but one neighbour in a thousand."""
        import numpy as np

        if self.probing.index.layout_exact:
            return EXACT_MARGIN
        below = (self.truth.similarities - estimates)[np.isfinite(estimates)]
        margin = float(max(np.quantile(below, MARGIN_QUANTILE), EXACT_MARGIN)) if len(below) else UNKNOWN_MARGIN
        return margin + self.probing.rounding

    @cached_property
    def _floor(self) -> np.ndarray:
        """float32 [q]: from where a caption is a candidate for being above the threshold."""
        import numpy as np

        return np.full(self.queries, self.threshold - self.margin, dtype=np.float32)

    def _best_floor(self, level: int) -> np.ndarray:
        """float32 [q]: from where it is one for the best 200; the fewer lists are probed, the lower."""
        import numpy as np

        return self.probing.best(TOP, level) - np.float32(2 * self.margin)

    @cached_property
    def _candidates(self) -> Candidates:
        import numpy as np

        return self.probing.candidates(np.minimum(self._floor, self._best_floor(0)))

    def hits(self, level: int) -> np.ndarray:
        """bool [neighbours]: which of them a search at `level` has among its candidates."""
        return self._hits(level, self._floor, self.truth.neighbours, self.neighbours, self.neighbour_levels)

    def best_hits(self, level: int) -> np.ndarray:
        """bool [best]: which of them are among the candidates that a search for the best 200 would re-rank."""
        return self._hits(level, self._best_floor(level), self.truth.best, self.best, self.best_levels)

    def _hits(
        self, level: int, floors: np.ndarray, pairs: Pairs, estimates: np.ndarray, levels: np.ndarray
    ) -> np.ndarray:
        stops = self.probing.stops(self._candidates.counts(floors), level)
        hits: np.ndarray = (estimates > floors[pairs.queries]) & (levels <= stops[pairs.queries])
        return hits

    def reached(self, level: int) -> float:
        """The share that the target is about; 1 when there is nothing to find."""
        hits = self.hits(level) if len(self.neighbours) else self.best_hits(level)
        return float(hits.mean()) if len(hits) else 1.0

    def recall(self, level: int, held_out: int, target: float) -> Recall:
        import numpy as np

        hits, best_hits, asked = self.hits(level), self.best_hits(level), self.truth.neighbours.queries
        per_query = np.bincount(asked, minlength=self.queries)
        asking = per_query > 0
        shares = np.sort(np.bincount(asked, weights=hits, minlength=self.queries)[asking] / per_query[asking])
        worst = shares[: max(1, len(shares) // 10)]
        return Recall(
            queries=self.queries,
            held_out_captions=held_out,
            queries_without_neighbours=int(self.queries - asking.sum()),
            sample=len(self.truth.ids),
            threshold=self.threshold,
            neighbours=len(hits),
            threshold_recall=round(float(hits.mean()), 5) if len(hits) else None,
            worst_tenth=round(float(worst.mean()), 5) if len(worst) else None,
            top_200_recall=round(float(best_hits.mean()), 5) if len(best_hits) else None,
            nprobe=self.probing.probes[level],
            margin=round(self.margin, 6),
            measured_vectors=self.probing.index.count,
            target=target,
        )
