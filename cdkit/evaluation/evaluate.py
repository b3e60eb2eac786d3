"""Stage `evaluate`: scores of samples against their prompts, the concept's photos, real images and the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from cdkit.config import ThreadedConfig, setting
from cdkit.datasets import Dataset, write_shard
from cdkit.errors import InputError
from cdkit.evaluation.protocol import PAPER_ENCODER, deviations
from cdkit.evaluation.samples import SampleSet, read_sample_set
from cdkit.inputs import EMBEDDED, Input
from cdkit.manifest import Counts
from cdkit.pictures.folder import shown
from cdkit.pictures.formats import SUFFIXES
from cdkit.pictures.reading import read_pictures
from cdkit.protocols import Context, ImageEncoder, Progress, TextEncoder
from cdkit.storage import Folder, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from cdkit.evaluation.scoring import Embedded, SetScores
    from cdkit.pictures.picture import Picture

MAIN = "samples"
SCORES_NAME = "scores.parquet"
SUMMARY_NAME = "summary.json"
SUMMARY_FORMAT = 1
KID_FEATURES = "image embeddings of the encoder, of norm √d"


class EvaluateConfig(ThreadedConfig):
    """What to score, and against what."""

    samples: str = setting(help="The samples to score: a folder of cdkit sample.", input="folder")
    compare: dict[str, str] = setting({}, "Further samples to score the same way, each with a name.", input="folder")
    concepts: dict[str, str] = setting(
        {},
        "A concept's category and its photos: a folder, or embedded:NAME. Repeatable.",
        flag="--concept",
        input="folder",
    )
    reference: str | None = setting(
        None, "Real images of the category for KID: a folder or a regularization set.", input="folder"
    )
    base_samples: str | None = setting(
        None, "The base model's samples of the same class prompts and seeds: measures drift.", input="folder"
    )
    encoder: str | None = setting(
        None,
        "The CLIP to score with: embedded, open_clip:…, transformers:… [default: embedded; the preset's own].",
        input="encoder",
    )
    dino: str | None = setting(None, "A DINO model for image alignment: transformers:FOLDER_OR_ID.", input="encoder")
    tokens: list[str] = setting(
        [], "A modifier token in the prompts, if it is neither a delta's nor like <new1>. Repeatable.", flag="--token"
    )
    preset: Literal["paper"] | None = setting(
        None, "paper: score with ViT-B/32, and say where the samples fall short of the paper's protocol."
    )
    resamples: int = setting(1000, "Bootstrap resamples.", ge=100)
    seed: int = setting(0, "Seed of the bootstrap.", ge=0)
    device: str | None = setting(None, "Device [default: the GPU when there is one].", execution=True)

    @model_validator(mode="before")
    @classmethod
    def _choose_encoder(cls, values: Any) -> Any:
        """Filled in before anything else, so that its content is in the fingerprint."""
        if not isinstance(values, dict) or values.get("encoder"):
            return values
        return {**values, "encoder": PAPER_ENCODER if values.get("preset") == "paper" else EMBEDDED}

    @model_validator(mode="after")
    def _check(self) -> EvaluateConfig:
        if MAIN in self.compare:
            raise ValueError(f"compare cannot be called {MAIN!r}: that is the main set's name")
        return self

    def is_small(self) -> bool:
        return self.clip == EMBEDDED and self.dino is None

    @property
    def clip(self) -> str:
        """The encoder's spec; never empty, as it is chosen before validation."""
        return self.encoder or EMBEDDED


@dataclass(frozen=True)
class _Material:
    """The pictures everything is compared with, read before a model is loaded."""

    sets: Mapping[str, SampleSet]
    photos: Mapping[str, Sequence[Picture]]
    reference: Sequence[Picture] | None
    before: Mapping[tuple[str, int], Picture] = field(default_factory=dict)


def evaluate(config: EvaluateConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Score every set; scores.parquet has one row per image and score, summary.json the estimates."""
    from cdkit.evaluation.scoring import score_set

    material = _read(config, context.progress)
    embedded = _embed(config, material, context.progress)
    scored = {
        name: score_set(samples, embedded[name], resamples=config.resamples, seed=config.seed)
        for name, samples in material.sets.items()
    }
    for name, scores in scored.items():
        for note in scores.notes:
            context.progress.note(note if name == MAIN else f"{name}: {note}")
    write_shard(out / SCORES_NAME, _table(scored), fingerprint="scores")
    summary = _summary(config, material, scored)
    write_json(out / SUMMARY_NAME, summary)
    lines = summary["protocol"]["deviations"] if config.preset else []
    rows = sum(len(scores.rows) for scores in scored.values())
    return Dataset(
        "scores",
        out.path,
        Counts(rows, rows),
        {"metrics": summary["metrics"], "sets": {name: entry["metrics"] for name, entry in summary["sets"].items()}},
        shortfall=f"not the paper's protocol: {'; '.join(lines)}" if lines else "",
    )


def _read(config: EvaluateConfig, progress: Progress) -> _Material:
    sets = {MAIN: read_sample_set(Path(config.samples), config.tokens)}
    tokens = [*config.tokens, *sets[MAIN].tokens]
    sets |= {name: read_sample_set(Path(folder), tokens) for name, folder in config.compare.items()}
    photos = {category: _pictures(source, progress) for category, source in config.concepts.items()}
    reference = _pictures(config.reference, progress) if config.reference else None
    before = _before(Path(config.base_samples), sets[MAIN]) if config.base_samples else {}
    return _Material(sets, photos, reference, before)


def _pictures(source: str, progress: Progress) -> Sequence[Picture]:
    """The photos or references of a source; raises InputError when there are none."""
    folder = read_pictures(source).without_others()
    if not folder.pictures:
        others = f"; these are no images: {shown(folder.left_out)}" if folder.left_out else ""
        raise InputError(
            f"{folder.source} holds no image{others}.",
            hint=f"Files that end in {', '.join(sorted(SUFFIXES))} count as images.",
        )
    # Captions do not matter here.
    for note in folder.left_out_notes():
        progress.note(note)
    return folder.pictures


def _before(folder: Path, samples: SampleSet) -> dict[tuple[str, int], Picture]:
    """The base model's pictures by prompt and seed, those that the main set's class prompts have too."""
    base = {(sample.prompt, sample.seed): sample.picture for sample in read_sample_set(folder).samples}
    wanted = [samples.samples[place] for place in samples.about_class()]
    found = {key: base[key] for sample in wanted if (key := (sample.prompt, sample.seed)) in base}
    if not found:
        raise InputError(
            f"{samples.folder} and {folder} have no class prompt and seed in common: drift cannot be measured.",
            hint='Draw the class prompt, such as "a photo of a dog" without the token, in both, at the same seeds.',
        )
    return found


def _embed(config: EvaluateConfig, material: _Material, progress: Progress) -> dict[str, Embedded]:
    from cdkit.encoders import load_text_encoder
    from cdkit.encoders.image_towers import load_image_encoder
    from cdkit.evaluation.image_embeddings import embed_pictures
    from cdkit.evaluation.scoring import Embedded

    texts = load_text_encoder(config.clip, device=config.device, precision="fp32")
    images = load_image_encoder(config.clip, device=config.device)
    _check_pair(config.clip, texts, images)
    if config.clip == EMBEDDED and _larger_than_embedded(material.sets[MAIN]):
        progress.note("The embedded CLIP knows the embedded world only: give --encoder for samples of other models.")

    def embed(pictures: Sequence[Picture], label: str) -> Tensor:
        return embed_pictures(images, pictures, progress, label=label)

    photos = {name: embed(pictures, f"embedding photos of {name}") for name, pictures in material.photos.items()}
    reference = embed(material.reference, "embedding reference images") if material.reference else None
    dino, dino_photos = None, {}
    if config.dino:
        dino = load_image_encoder(config.dino, device=config.device)
        dino_photos = {name: embed_pictures(dino, pictures, progress) for name, pictures in material.photos.items()}
    found = {}
    for name, samples in material.sets.items():
        pictures = [sample.picture for sample in samples.samples]
        found[name] = Embedded(
            images=embed(pictures, f"embedding {name}"),
            texts=_prompt_embeddings(texts, [sample.plain_prompt for sample in samples.samples]),
            photos=photos,
            dino_images=embed_pictures(dino, pictures, progress) if dino is not None else None,
            dino_photos=dino_photos,
            reference=reference,
            before=_embedded_before(material.before, samples, embed) if name == MAIN else {},
        )
    return found


def _check_pair(spec: str, texts: TextEncoder, images: ImageEncoder) -> None:
    if texts.dimension != images.dimension:
        raise InputError(
            f"The text and image towers of {spec!r} do not share a space ({texts.dimension} and {images.dimension}).",
            hint="Give a CLIP with both towers.",
        )


def _larger_than_embedded(samples: SampleSet) -> bool:
    return max(samples.samples[0].picture.open().size) > 64


def _prompt_embeddings(encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
    """One row per prompt, each distinct one encoded once."""
    import torch

    distinct = list(dict.fromkeys(prompts))
    places = {prompt: place for place, prompt in enumerate(distinct)}
    rows = torch.from_numpy(encoder.encode(distinct))
    return rows[[places[prompt] for prompt in prompts]]


def _embedded_before(before: Mapping[tuple[str, int], Picture], samples: SampleSet, embed: Any) -> dict[int, Tensor]:
    """The base model's embeddings by the place of the sample they belong to."""
    places = [
        place
        for place in samples.about_class()
        if (samples.samples[place].prompt, samples.samples[place].seed) in before
    ]
    if not places:
        return {}
    keys = [(samples.samples[place].prompt, samples.samples[place].seed) for place in places]
    rows = embed([before[key] for key in keys], "embedding the base model's samples")
    return dict(zip(places, rows, strict=True))


def _table(scored: Mapping[str, SetScores]) -> Any:
    import pyarrow as pa

    types = [
        ("set", pa.string()),
        ("metric", pa.string()),
        ("concept", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("path", pa.string()),
        ("value", pa.float64()),
    ]
    rows = []
    for name, scores in scored.items():
        for row in scores.rows:
            sample = scores.samples.samples[row.place]
            rows.append(
                {
                    "set": name,
                    "metric": row.metric,
                    "concept": row.concept or None,
                    "prompt": sample.prompt,
                    "seed": sample.seed,
                    "path": sample.path,
                    "value": row.value,
                }
            )
    return pa.Table.from_pylist(rows, schema=pa.schema(types))


def _summary(config: EvaluateConfig, material: _Material, scored: Mapping[str, SetScores]) -> dict[str, Any]:
    main = material.sets[MAIN]
    lines = deviations(main, len(material.photos), len(material.reference) if material.reference else None)
    return {
        "format": SUMMARY_FORMAT,
        "metrics": scored[MAIN].metrics,
        "sets": {
            name: {
                "folder": str(scores.samples.folder),
                "samples": len(scores.samples.samples),
                "tokens": list(scores.samples.tokens),
                "metrics": scores.metrics,
                "notes": scores.notes,
            }
            for name, scores in scored.items()
        },
        "encoder": config.clip,
        "dino": config.dino,
        "kid_features": KID_FEATURES,
        "concepts": {name: len(pictures) for name, pictures in material.photos.items()},
        "reference_images": len(material.reference) if material.reference else 0,
        "bootstrap": {"confidence": 0.95, "resamples": config.resamples, "seed": config.seed, "over": "prompts"},
        "protocol": {"preset": config.preset, "deviations": lines},
    }
