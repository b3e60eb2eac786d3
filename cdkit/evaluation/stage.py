"""The stages of evaluation: evaluate, compare, weight-change, attention."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.devices import choose_device
from cdkit.core.errors import InputError
from cdkit.core.fingerprints import EMBEDDED, Input
from cdkit.core.formatting import markdown_text
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context, ImageEncoder, Progress, TextEncoder
from cdkit.core.shards import Dataset, write_shard, write_tensors
from cdkit.core.storage import Folder, atomic_path, write_json, write_text
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.delta import delta_tokens, load_delta
from cdkit.evaluation.attention import ATTENTION_NAME, IMAGE_NAME, MAPS_NAME, STRIP_NAME, draw_strip, prompt_tokens
from cdkit.evaluation.comparison import (
    TABLE_NAME,
    TableRow,
    _folders,
    _legend,
    _scores_summary,
    _write_csv,
    markdown_table,
    order_differences,
    paper_values,
    pooled,
)
from cdkit.evaluation.config import MAIN, AttentionConfig, CompareConfig, EvaluateConfig, WeightChangeConfig
from cdkit.evaluation.protocol import deviations
from cdkit.evaluation.samples import SampleSet, read_sample_set
from cdkit.evaluation.scoring import SCORES_NAME, SUMMARY_NAME
from cdkit.evaluation.weight_change import CHANGE_NAME, CHANGE_TABLE_NAME, PLOT_NAME, compare_weights, plot
from cdkit.pictures.folder import SUFFIXES, shown
from cdkit.pictures.reading import read_pictures
from cdkit.sampling.drawing import Sample, draw, notes_on_prompts
from cdkit.sampling.schedulers import make_scheduler

if TYPE_CHECKING:
    from torch import Tensor

    from cdkit.evaluation.scoring import Embedded, SetScores
    from cdkit.pictures.picture import Picture


def compare(config: CompareConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write table.json, .md and .csv: pooled estimates per method with intervals, the paper's beside them."""
    rows = [
        TableRow(group, method, pooled(folders, config.resamples, config.seed), paper_values(group, method))
        for group, methods in (("single", config.single), ("multi", config.multi))
        for method, folders in methods.items()
    ]
    encoders = sorted({str(_scores_summary(Path(folder)).get("encoder")) for folder in _folders(config)})
    if len(encoders) > 1:
        raise InputError(
            f"The scores were made with different encoders: {', '.join(encoders)}.",
            hint="Evaluate all of them with the same --encoder.",
        )
    notes = order_differences(rows)
    details = {"encoder": encoders[0], "rows": [row.as_json() for row in rows], "notes": notes}
    write_json(out / TABLE_NAME, details)
    text = "\n".join(f"- {markdown_text(note)}" for note in notes)
    write_text(
        out / "table.md",
        f"{markdown_table(rows)}\n{_legend(encoders[0])}\n{text}\n" if notes else markdown_table(rows),
    )
    _write_csv(out / "table.csv", rows)
    return Dataset("comparison", out.path, Counts(len(rows), len(rows)), details)


def weight_change(config: WeightChangeConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write weight_change.csv (one row per parameter), .json (per group) and .svg."""
    changes, groups = compare_weights(config, context.progress)
    with (
        atomic_path(out / CHANGE_TABLE_NAME) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as handle,
    ):
        writer = csv.writer(handle)
        writer.writerow(["parameter", "group", "values", "rate"])
        writer.writerows((c.name, c.group, c.values, "" if c.rate is None else repr(c.rate)) for c in changes)
    write_text(out / PLOT_NAME, plot(changes, groups) + "\n")
    details = {"base": config.base, "tuned": config.tuned, "groups": [group.as_json() for group in groups]}
    write_json(out / CHANGE_NAME, details)
    return Dataset("weight_change", out.path, Counts(len(changes), len(changes)), details)


def attention_maps(config: AttentionConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write image.png, attention.png (the strip), maps.safetensors (one map per token) and attention.json."""
    from cdkit.evaluation.attention import recorded_attention

    deltas = [load_delta(path) for path in config.deltas]
    pipeline = load_base_model(config.base, device=choose_device(config.device))
    apply_deltas(pipeline, deltas, note=context.progress.note)
    for note in notes_on_prompts([config.prompt], delta_tokens(config.deltas), pipeline):
        context.progress.note(note)
    pipeline.scheduler = make_scheduler(config.scheduler, pipeline.scheduler)
    entry = Sample(config.prompt, config.seed, IMAGE_NAME)
    with (
        context.progress.task("drawing", config.steps, unit="steps") as task,
        recorded_attention(pipeline.unet) as record,
    ):
        image = draw(pipeline, [entry], config.as_sampling(), on_step=task.advance)[0]
    tokens = prompt_tokens(pipeline.tokenizer, config.prompt)
    maps = record.maps(image.height / image.width)[1 : 1 + len(tokens)]
    with atomic_path(out / IMAGE_NAME) as temporary:
        image.save(temporary, format="PNG")
    with atomic_path(out / STRIP_NAME) as temporary:
        draw_strip(image, tokens, maps).save(temporary, format="PNG")
    write_tensors(out / MAPS_NAME, {f"{place:02d}": map_ for place, map_ in enumerate(maps)}, {})
    details = {
        "prompt": config.prompt,
        "seed": config.seed,
        "tokens": [
            {"token": token, "share": round(float(map_.mean()), 6)} for token, map_ in zip(tokens, maps, strict=True)
        ],
    }
    write_json(out / ATTENTION_NAME, details)
    return Dataset("attention", out.path, Counts(len(tokens), len(tokens)), details)


SUMMARY_FORMAT = 1
KID_FEATURES = "image embeddings of the encoder, of norm √d"


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
