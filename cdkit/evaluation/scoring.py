"""Scores of one set of samples, from embeddings: per image where a score has images, and as estimates with intervals.

The measures at the end take rows of norm 1 (float [n, dimension]) and give one float64 per sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError
from cdkit.evaluation.samples import SampleSet
from cdkit.pictures.embedding import nearest_photo

if TYPE_CHECKING:
    from torch import Tensor

    from cdkit.evaluation.embeddings import Embedded

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


def score_set(samples: SampleSet, embedded: Embedded, *, resamples: int, seed: int) -> SetScores:
    """Every score that the embeddings allow. Text and image alignment are of the samples that show the concept;
    drift and KID of those of class prompts."""

    scores = SetScores(samples)
    bootstrap = Bootstrap(scores, resamples, seed)
    places = samples.about_concept()
    cosines = text_alignment(embedded.images[places], embedded.texts[places])
    bootstrap.add("text_alignment", places, cosines)
    bootstrap.add("clip_score", places, clip_score(cosines))
    _add_concepts(bootstrap, "image_alignment", places, embedded.images, embedded.photos)
    if embedded.dino_images is not None:
        _add_concepts(bootstrap, "dino_image_alignment", places, embedded.dino_images, embedded.dino_photos)
    _add_concepts(bootstrap, "nearest_photo", places, embedded.images, embedded.photos)
    if embedded.before:
        import torch

        same = sorted(embedded.before)
        values = drift(embedded.images[same], torch.stack([embedded.before[place] for place in same]))
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
class Bootstrap:
    """Adds per-image scores and their estimate to a set's scores."""

    scores: SetScores
    resamples: int
    seed: int

    def add(self, name: str, places: Sequence[int], values: Tensor, *, concept: str = "", metric: str = "") -> None:
        """metric: the estimate's name where it differs from the rows'."""
        from cdkit.evaluation.estimates import mean_with_interval

        samples = self.scores.samples.samples
        if not values.isfinite().all():
            raise InputError(f"The score {name} is not a number for some images.", hint="Draw them again.")
        self.scores.rows.extend(
            ScoreRow(place, name, concept, float(value)) for place, value in zip(places, values, strict=True)
        )
        estimate = mean_with_interval(
            values, [samples[place].prompt for place in places], resamples=self.resamples, seed=self.seed
        )
        self.scores.metrics[metric or name] = asdict(estimate)


def _add_concepts(
    bootstrap: Bootstrap, name: str, places: Sequence[int], images: Tensor, photos: Mapping[str, Tensor]
) -> None:
    """One score per concept, and over several their mean per image."""
    import torch

    score = nearest_photo if name == "nearest_photo" else image_alignment
    values = {concept: score(images[places], rows) for concept, rows in photos.items()}
    for concept, of_concept in values.items():
        metric = f"{name}.{concept}" if len(values) > 1 else name
        bootstrap.add(name, places, of_concept, concept=concept, metric=metric)
    if len(values) > 1:
        bootstrap.add(name, places, torch.stack(list(values.values())).mean(dim=0))


def _add_kernel_distance(scores: SetScores, embedded: Embedded, *, resamples: int, seed: int) -> None:
    from cdkit.evaluation.estimates import kernel_distance, unit_features

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
    distance = kernel_distance(
        unit_features(embedded.images[places]),
        unit_features(reference),
        blocks=[samples.samples[place].prompt for place in places],
        resamples=resamples,
        seed=seed,
    )
    scores.metrics["kid"] = asdict(distance) | {"over": over}


CLIP_SCORE_WEIGHT = 2.5


def text_alignment(images: Tensor, texts: Tensor) -> Tensor:
    """Cosine of each image with the text of its own prompt: images and texts [n, d], to [n] in [-1, 1]."""
    return (images.double() * texts.double()).sum(dim=1)


def clip_score(cosines: Tensor) -> Tensor:
    """CLIPScore (Hessel et al. 2021, section 3; CustomConcept101's text alignment): 2.5 · max(cosine, 0)."""
    return CLIP_SCORE_WEIGHT * cosines.double().clamp(min=0)


def image_alignment(images: Tensor, photos: Tensor) -> Tensor:
    """Mean cosine of each image with every photo of the concept (Custom Diffusion, appendix D): [n, d], [m, d] to [n].

    Its mean over the samples is the mean over all pairs of sample and photo.
    """
    return (images.double() @ photos.double().T).mean(dim=1)


def drift(images: Tensor, before: Tensor) -> Tensor:
    """1 - cosine of each image with the base model's image of the same prompt and seed: 0 is no change, [n]."""
    return 1 - text_alignment(images, before)
