"""Recall of an index, measured with queries that are not in it against brute force, and the settings that reach it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.protocols import Context, TextEncoder
from cdkit.core.storage import Folder
from cdkit.core.text import caption_id, clean_captions
from cdkit.index.brute_force import Queries, Truth, brute_force
from cdkit.index.caption_index import INDEX_NAME
from cdkit.index.codes import Shards
from cdkit.index.faiss_index import OpenIndex, estimates, id_selector
from cdkit.index.layout import RECALL_TARGET, IndexSettings, Layout
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

    from cdkit.index.faiss_index import faiss_threads, open_faiss
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
    with context.progress.task("measuring recall", None) as task, faiss_threads(settings.threads):
        recall = measure(
            open_faiss(out / INDEX_NAME, exact=layout.exact, nprobe=1),
            shards.paths,
            queries,
            threshold=encoder.default_threshold,
            seed=settings.seed,
            target=settings.recall_target,
            lists=max(1, layout.lists),
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
        measured = _Setting(index, queries.vectors, truth, threshold, margin, nprobe, selector)
        recall = replace(measured.recall(len(queries.held_out), len(truth.ids)), target=target)
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
class _Setting:
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

        hits, best, best_hits = 0, 0, 0
        shares = []
        for number, vector in enumerate(self.vectors):
            neighbours, nearest = self.truth.neighbours[number], self.truth.best[number]
            if len(neighbours):
                reached = int(np.isin(neighbours, self._within(vector, self.threshold - self.margin)).sum())
                hits += reached
                shares.append(reached / len(neighbours))
            if len(nearest):
                best += len(nearest)
                best_hits += int(np.isin(nearest, self._best(vector, len(nearest))).sum())
        neighbours_in_all = sum(len(ids) for ids in self.truth.neighbours)
        worst = sorted(shares)[: max(1, len(shares) // 10)]
        return Recall(
            queries=len(self.vectors),
            held_out_captions=held_out,
            queries_without_neighbours=len(self.vectors) - len(shares),
            sample=sample,
            threshold=self.threshold,
            neighbours=neighbours_in_all,
            threshold_recall=round(hits / neighbours_in_all, 5) if neighbours_in_all else None,
            worst_tenth=round(sum(worst) / len(worst), 5) if worst else None,
            top_200_recall=round(best_hits / best, 5) if best else None,
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
