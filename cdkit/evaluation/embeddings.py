"""Embeddings of what is evaluated: of prompts, and of pictures, which are kept in one SQLite file in cdkit's cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdkit.core.errors import InputError
from cdkit.core.fingerprints import EMBEDDED, CacheFile
from cdkit.core.protocols import ImageEncoder, Progress, TextEncoder
from cdkit.evaluation.config import MAIN, EvaluateConfig
from cdkit.evaluation.samples import SampleSet
from cdkit.pictures.picture import Picture

EMBEDDINGS = CacheFile("picture-embeddings.sqlite", most=50_000, replaces=("image-embeddings.sqlite",))
AT_ONCE = 64


def embed_pictures(
    encoder: ImageEncoder, pictures: Sequence[Picture], progress: Progress, *, label: str = "embedding images"
) -> Tensor:
    """Embeddings float32 [n, dimension] of `pictures`, rows of norm 1; pictures seen before are not opened again.

    Raises InputError that names every picture that cannot be read.
    """
    from cdkit.pictures.decoding import RULES

    distinct = {picture.sha256: picture for picture in pictures}
    # What a file looks like is a matter of the rules of decoding, too.
    key = f"{encoder.weights_hash()} {RULES}"
    rows = {sha: row for sha, row in _read(key, list(distinct)).items() if row.shape == (encoder.dimension,)}
    missing = [picture for content, picture in distinct.items() if content not in rows]
    broken: list[str] = []
    with progress.task(label, len(missing), unit="images") as task:
        for start in range(0, len(missing), AT_ONCE):
            batch = missing[start : start + AT_ONCE]
            images = {}
            for picture in batch:
                try:
                    images[picture.sha256] = picture.open()
                except InputError as error:
                    broken.append(error.message)
            if images:
                made = dict(zip(images, encoder.encode_images(list(images.values())), strict=True))
                rows |= made
                _write(key, made)
            task.advance(len(batch))
    if broken:
        shown = [*broken[:5], *([f"and {len(broken) - 5} more"] if len(broken) > 5 else [])]
        raise InputError("\n".join(shown), hint="Draw or copy these again; the scores would be of other images.")
    return torch.from_numpy(np.stack([rows[picture.sha256] for picture in pictures]))


def _keys(encoder: str, contents: Sequence[str]) -> dict[bytes, str]:
    return {hashlib.sha256(f"{encoder} {content}".encode()).digest(): content for content in contents}


def _read(encoder: str, contents: Sequence[str]) -> dict[str, np.ndarray]:
    keys = _keys(encoder, contents)
    return {keys[key]: np.frombuffer(value, dtype="<f4").copy() for key, value in EMBEDDINGS.get(list(keys)).items()}


def _write(encoder: str, rows: Mapping[str, np.ndarray]) -> None:
    keys = _keys(encoder, list(rows))
    EMBEDDINGS.put({key: rows[content].astype("<f4").tobytes() for key, content in keys.items()})


@dataclass(frozen=True)
class Material:
    """The pictures everything is compared with, read before a model is loaded."""

    sets: Mapping[str, SampleSet]
    photos: Mapping[str, Sequence[Picture]]
    reference: Sequence[Picture] | None
    before: Mapping[tuple[str, int], Picture] = field(default_factory=dict)


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


def embed_material(config: EvaluateConfig, material: Material, progress: Progress) -> dict[str, Embedded]:
    """The embeddings of every set; raises InputError when the encoder's two towers do not belong together."""
    from cdkit.encoders import load_text_encoder
    from cdkit.encoders.image_towers import load_image_encoder

    texts = load_text_encoder(config.clip, device=config.device, precision="fp32")
    images = load_image_encoder(config.clip, device=config.device)
    if texts.dimension != images.dimension:
        dimensions = f"{texts.dimension} and {images.dimension}"
        raise InputError(
            f"The text and image towers of {config.clip!r} do not share a space ({dimensions}).",
            hint="Give a CLIP with both towers.",
        )
    if config.clip == EMBEDDED and max(material.sets[MAIN].samples[0].picture.open().size) > 64:
        progress.note("The embedded CLIP knows the embedded world only: give --encoder for samples of other models.")

    def embed(pictures: Sequence[Picture], label: str) -> Tensor:
        return embed_pictures(images, pictures, progress, label=label)

    photos = {name: embed(pictures, f"embedding photos of {name}") for name, pictures in material.photos.items()}
    reference = embed(material.reference, "embedding reference images") if material.reference else None
    dino, dino_photos = None, {}
    if config.dino:
        dino = load_image_encoder(config.dino, device=config.device)
        dino_photos = {name: embed_pictures(dino, pictures, progress) for name, pictures in material.photos.items()}
    embedded = {}
    for name, samples in material.sets.items():
        pictures = [sample.picture for sample in samples.samples]
        embedded[name] = Embedded(
            images=embed(pictures, f"embedding {name}"),
            texts=_prompt_embeddings(texts, [sample.plain_prompt for sample in samples.samples]),
            photos=photos,
            dino_images=embed_pictures(dino, pictures, progress) if dino is not None else None,
            dino_photos=dino_photos,
            reference=reference,
            before=_embedded_before(material.before, samples, embed) if name == MAIN else {},
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
