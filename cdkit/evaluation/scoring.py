"""Scores of one set of samples: per image where a score has images, and as estimates with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError
from cdkit.evaluation.samples import SampleSet

if TYPE_CHECKING:
    from torch import Tensor


SCORES_NAME = "scores.parquet"
SUMMARY_NAME = "summary.json"
FEW_PROMPTS = 5
FACTS = ("delta_bytes", "train_seconds", "seconds_per_image")


@dataclass(frozen=True)
class ScoreRow:
    """One score of one image; concept is empty where the score is about none in particular."""

    place: int
    metric: str
    concept: str
    value: float


@dataclass
class SetScores:
    """The scores of one set of samples."""

    samples: SampleSet
    rows: list[ScoreRow] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Embedded:
    """Embeddings of everything one set of samples is scored with, rows of norm 1.

    texts: of each sample's prompt without modifier tokens. photos: by concept. dino: the same images and photos in
    another encoder. before: per sample the base model's image at the same prompt and seed, where there is one.
    """

    images: Tensor
    texts: Tensor
    photos: Mapping[str, Tensor] = field(default_factory=dict)
    dino_images: Tensor | None = None
    dino_photos: Mapping[str, Tensor] = field(default_factory=dict)
    reference: Tensor | None = None
    before: Mapping[int, Tensor] = field(default_factory=dict)


def score_set(samples: SampleSet, embedded: Embedded, *, resamples: int, seed: int) -> SetScores:
    """Every score that the embeddings allow. Text and image alignment are of the samples that show the concept;
    drift and KID of those of class prompts."""
    from cdkit.evaluation import alignment

    scores = SetScores(samples)
    bootstrap = _Bootstrap(scores, resamples, seed)
    places = samples.about_concept()
    cosines = alignment.text_alignment(embedded.images[places], embedded.texts[places])
    bootstrap.add("text_alignment", places, cosines)
    bootstrap.add("clip_score", places, alignment.clip_score(cosines))
    _add_concepts(bootstrap, "image_alignment", places, embedded.images, embedded.photos)
    if embedded.dino_images is not None:
        _add_concepts(bootstrap, "dino_image_alignment", places, embedded.dino_images, embedded.dino_photos)
    _add_concepts(bootstrap, "nearest_photo", places, embedded.images, embedded.photos)
    if embedded.before:
        import torch

        same = sorted(embedded.before)
        values = alignment.drift(embedded.images[same], torch.stack([embedded.before[place] for place in same]))
        bootstrap.add("drift", same, values)
    if embedded.reference is not None:
        _add_kernel_distance(scores, embedded, resamples=resamples, seed=seed)
    for name in FACTS:
        if name in samples.facts:
            scores.metrics[name] = {"value": samples.facts[name], "low": None, "high": None, "n": 1}
    prompts = len({samples.samples[place].prompt for place in places})
    if len(places) == 1:
        scores.notes.append("There is one sample: no interval can be given.")
    elif prompts == 1:
        scores.notes.append("There is one prompt: the intervals are over its images and say nothing of other prompts.")
    elif prompts < FEW_PROMPTS:
        scores.notes.append(
            f"There are only {prompts} prompts: intervals over so few are rough, and mostly too narrow."
        )
    return scores


@dataclass(frozen=True)
class _Bootstrap:
    """Adds per-image scores and their estimate to a set's scores."""

    scores: SetScores
    resamples: int
    seed: int

    def add(self, name: str, places: Sequence[int], values: Tensor, *, concept: str = "", metric: str = "") -> None:
        """metric: the estimate's name where it differs from the rows'."""
        from cdkit.evaluation.alignment import all_finite
        from cdkit.evaluation.intervals import mean_with_interval

        samples = self.scores.samples.samples
        if not all_finite(values):
            raise InputError(f"The score {name} is not a number for some images.", hint="Draw them again.")
        self.scores.rows.extend(
            ScoreRow(place, name, concept, float(value)) for place, value in zip(places, values, strict=True)
        )
        estimate = mean_with_interval(
            values, [samples[place].prompt for place in places], resamples=self.resamples, seed=self.seed
        )
        self.scores.metrics[metric or name] = estimate.as_json()


def _add_concepts(
    bootstrap: _Bootstrap, name: str, places: Sequence[int], images: Tensor, photos: Mapping[str, Tensor]
) -> None:
    """One score per concept, and over several their mean per image."""
    import torch

    from cdkit.evaluation import alignment

    score = alignment.nearest_photo if name == "nearest_photo" else alignment.image_alignment
    values = {concept: score(images[places], rows) for concept, rows in photos.items()}
    if not values:
        return
    if len(values) > 1:
        for concept, own in values.items():
            bootstrap.add(name, places, own, concept=concept, metric=f"{name}.{concept}")
        bootstrap.add(name, places, torch.stack(list(values.values())).mean(dim=0))
    else:
        concept, own = next(iter(values.items()))
        bootstrap.add(name, places, own, concept=concept, metric=name)


def _add_kernel_distance(scores: SetScores, embedded: Embedded, *, resamples: int, seed: int) -> None:
    from cdkit.evaluation.kernel_distance import kernel_distance, unit_features

    samples, reference = scores.samples, embedded.reference
    assert reference is not None
    places = samples.about_class()
    over = "prompts without a modifier token"
    if len(places) < 2:
        places, over = list(range(len(samples.samples))), "all samples"
        scores.notes.append("No class prompt was drawn (one without a modifier token): KID is of all samples.")
    if len(places) < 2 or len(reference) < 2:
        scores.notes.append("KID needs at least two samples and two reference images: it was left out.")
        return
    found = kernel_distance(
        unit_features(embedded.images[places]),
        unit_features(reference),
        blocks=[samples.samples[place].prompt for place in places],
        resamples=resamples,
        seed=seed,
    )
    scores.metrics["kid"] = {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "resampled": found.resampled,
        "standard_error": found.standard_error,
        "reference_n": found.reference_n,
        "over": over,
    }
