"""Embeddings of what is evaluated: prompts, samples, photos and references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.protocols import ImageEncoder, Progress, TextEncoder
from cdkit.evaluation.config import MAIN, UNRELATED, EvaluateConfig
from cdkit.evaluation.samples import SampleSet
from cdkit.pictures.embedding import embed_pictures
from cdkit.pictures.picture import Picture

_AGAIN = "Draw or copy these again; the scores would be of other images."


@dataclass(frozen=True)
class Unrelated:
    """The samples of unrelated prompts after training, and the base model's pictures of the same, place by place."""

    samples: SampleSet
    before: tuple[Picture, ...]


@dataclass(frozen=True)
class Material:
    """The pictures everything is compared with, read before a model is loaded."""

    sets: Mapping[str, SampleSet]
    photos: Mapping[str, Sequence[Picture]]
    reference: Sequence[Picture] | None
    before: Mapping[tuple[str, int], Picture] = field(default_factory=dict)
    unrelated: Unrelated | None = None


@dataclass(frozen=True)
class Embedded:
    """Embeddings of everything one set of samples is scored with, rows of norm 1.

    texts: of each sample's prompt without modifier tokens. photos: by concept. dino: the same images and photos in
    another encoder. before: per sample the base model's image at the same prompt and seed, where there is one.
    The set of unrelated prompts has images, texts and before.
    """

    images: Tensor
    texts: Tensor
    photos: Mapping[str, Tensor] = field(default_factory=dict)
    dino_images: Tensor | None = None
    dino_photos: Mapping[str, Tensor] = field(default_factory=dict)
    reference: Tensor | None = None
    before: Mapping[int, Tensor] = field(default_factory=dict)


def embed_material(config: EvaluateConfig, material: Material, progress: Progress) -> dict[str, Embedded]:
    """The embeddings of every set; raises InputError when the encoder's two towers do not belong together."""
    from cdkit.encoders import load_text_encoder
    from cdkit.encoders.image_towers import image_encoder_of, load_image_encoder

    texts = load_text_encoder(config.clip, device=config.device, precision="fp32")
    images = image_encoder_of(texts, config.device)
    if config.clip == EMBEDDED and max(material.sets[MAIN].samples[0].picture.open().size) > 64:
        progress.note("The embedded CLIP knows the embedded world only: give --encoder for samples of other models.")

    def embed(pictures: Sequence[Picture], label: str, encoder: ImageEncoder = images) -> Tensor:
        return torch.from_numpy(embed_pictures(encoder, pictures, progress, label=label, hint=_AGAIN))

    photos = {name: embed(pictures, f"embedding photos of {name}") for name, pictures in material.photos.items()}
    reference = embed(material.reference, "embedding reference images") if material.reference else None
    dino, dino_photos = None, {}
    if config.dino:
        dino = load_image_encoder(config.dino, device=config.device)
        dino_photos = {
            name: embed(pictures, f"embedding photos of {name}", dino) for name, pictures in material.photos.items()
        }
    embedded = {}
    for name, samples in material.sets.items():
        pictures = [sample.picture for sample in samples.samples]
        embedded[name] = Embedded(
            images=embed(pictures, f"embedding {name}"),
            texts=_prompt_embeddings(texts, [sample.plain_prompt for sample in samples.samples]),
            photos=photos,
            dino_images=embed(pictures, f"embedding {name}", dino) if dino is not None else None,
            dino_photos=dino_photos,
            reference=reference,
            before=_embedded_before(material.before, samples, embed) if name == MAIN else {},
        )
    if material.unrelated is not None:
        unrelated = material.unrelated.samples.samples
        before = embed(material.unrelated.before, "embedding the base model's unrelated samples")
        embedded[UNRELATED] = Embedded(
            images=embed([sample.picture for sample in unrelated], "embedding unrelated samples"),
            texts=_prompt_embeddings(texts, [sample.plain_prompt for sample in unrelated]),
            before=dict(enumerate(before)),
        )
    return embedded


def _prompt_embeddings(encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
    """One row per prompt, each distinct one encoded once."""
    distinct = list(dict.fromkeys(prompts))
    places = {prompt: place for place, prompt in enumerate(distinct)}
    rows = torch.from_numpy(encoder.encode(distinct))
    return rows[[places[prompt] for prompt in prompts]]


def _embedded_before(before: Mapping[tuple[str, int], Picture], samples: SampleSet, embed: Any) -> dict[int, Tensor]:
    """The base model's embeddings by the place of the sample they belong to."""
    keys = {place: (samples.samples[place].prompt, samples.samples[place].seed) for place in samples.about_class()}
    pictures = {place: before[key] for place, key in keys.items() if key in before}
    if not pictures:
        return {}
    rows = embed(list(pictures.values()), "embedding the base model's samples")
    return dict(zip(pictures, rows, strict=True))
