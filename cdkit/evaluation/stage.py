"""The stages of evaluation: evaluate, compare, weight-change, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.fingerprints import Input
from cdkit.core.machine import choose_device
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context, Progress
from cdkit.core.shards import Dataset, write_shard, write_tensors
from cdkit.core.storage import Folder, write_csv, write_json, write_text
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.delta import delta_tokens, load_delta
from cdkit.deltas.families.table import denoiser_of, family_of
from cdkit.evaluation.attention import (
    ATTENTION_NAME,
    IMAGE_NAME,
    MAPS_NAME,
    STRIP_NAME,
    draw_strip,
    prompt_tokens,
    recorded_attention,
)
from cdkit.evaluation.comparison import TABLE_NAME, TableRow, csv_table, markdown_page, order_differences, paper_values
from cdkit.evaluation.config import MAIN, UNRELATED, AttentionConfig, CompareConfig, EvaluateConfig, WeightChangeConfig
from cdkit.evaluation.embeddings import Material, embed_material
from cdkit.evaluation.method_scores import (
    WORST_ALIGNMENT,
    ImageScores,
    changes,
    pooled,
    read_image_scores,
    worst_alignment,
)
from cdkit.evaluation.preservation import read_unrelated, score_unrelated
from cdkit.evaluation.protocol import deviations
from cdkit.evaluation.samples import SampleSet, read_sample_set
from cdkit.evaluation.scoring import SCORES_NAME, SUMMARY_NAME
from cdkit.evaluation.weight_change import CHANGE_NAME, CHANGE_TABLE_NAME, PLOT_NAME, compare_weights, plot
from cdkit.pictures.folder import SUFFIXES, shown
from cdkit.pictures.picture import save_png
from cdkit.pictures.reading import read_pictures
from cdkit.sampling.drawing import Sample, draw, notes_on_prompts
from cdkit.sampling.schedulers import make_scheduler

if TYPE_CHECKING:
    from cdkit.evaluation.scoring import SetScores
    from cdkit.pictures.picture import Picture


def compare(config: CompareConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write table.json, .md and .csv: pooled estimates per method with intervals, the paper's beside them."""
    read = cache(read_image_scores)
    groups = {
        group: {method: [read(place) for place in places] for method, places in methods.items()}
        for group, methods in (("single", config.single), ("multi", config.multi))
    }
    folders = [folder for methods in groups.values() for scores in methods.values() for folder in scores]
    encoders = sorted({str(folder.summary.get("encoder")) for folder in folders})
    if len(encoders) > 1:
        raise InputError(
            f"The scores were made with different encoders: {', '.join(encoders)}.",
            hint="Evaluate all of them with the same --encoder.",
        )
    rows = [
        TableRow(group, method, _scores_of(method, methods, config), paper_values(group, method))
        for group, methods in groups.items()
        for method in methods
    ]
    notes = order_differences(rows)
    details = {"encoder": encoders[0], "rows": [asdict(row) for row in rows], "notes": notes}
    write_json(out / TABLE_NAME, details)
    write_text(out / "table.md", markdown_page(rows, encoders[0], notes))
    write_csv(out / "table.csv", *csv_table(rows))
    return Dataset("comparison", out.path, Counts(len(rows), len(rows)), details)


def _scores_of(
    method: str, methods: Mapping[str, Sequence[ImageScores]], config: CompareConfig
) -> dict[str, dict[str, Any]]:
    """A method's estimates by column: its own, its worst, and its change against the method that was named."""
    folders = methods[method]
    columns = pooled(folders, config.resamples, config.seed)
    worst = worst_alignment(folders)
    if worst is not None:
        columns[WORST_ALIGNMENT] = worst
    if config.against is not None and config.against in methods and config.against != method:
        columns |= changes(folders, methods[config.against], config.resamples, config.seed)
    return columns


def weight_change(config: WeightChangeConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write weight_change.csv (one row per parameter), .json (per group) and .svg."""
    changes, groups = compare_weights(config, context.progress)
    rows = ((c.name, c.group, c.values, "" if c.rate is None else repr(c.rate)) for c in changes)
    write_csv(out / CHANGE_TABLE_NAME, ["parameter", "group", "values", "rate"], rows)
    write_text(out / PLOT_NAME, plot(changes, groups) + "\n")
    details = {"base": config.base, "tuned": config.tuned, "groups": [asdict(group) for group in groups]}
    write_json(out / CHANGE_NAME, details)
    return Dataset("weight_change", out.path, Counts(len(changes), len(changes)), details)


def attention_maps(config: AttentionConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write image.png, attention.png (the strip), maps.safetensors (one map per token) and attention.json."""
    deltas = [load_delta(path) for path in config.deltas]
    pipeline = load_base_model(config.base, device=choose_device(config.device))
    if family_of(pipeline).denoiser != "unet":
        raise ConfigError(
            f"{config.base} is a {family_of(pipeline).name} model: attention maps are read off U-Nets alone.",
            hint="Give a Stable Diffusion 1, 2 or XL model.",
        )
    apply_deltas(pipeline, deltas, note=context.progress.note)
    for note in notes_on_prompts([config.prompt], delta_tokens(config.deltas), pipeline):
        context.progress.note(note)
    pipeline.scheduler = make_scheduler(config.scheduler, pipeline.scheduler)
    entry = Sample(config.prompt, config.seed, IMAGE_NAME)
    with (
        context.progress.task("drawing", config.steps, unit="steps") as task,
        recorded_attention(denoiser_of(pipeline)) as record,
    ):
        image = draw(pipeline, [entry], config.as_sampling(), on_step=task.advance)[0]
    tokens = prompt_tokens(pipeline.tokenizer, config.prompt)
    maps = record.maps(image.height / image.width)[1 : 1 + len(tokens)]
    save_png(image, out / IMAGE_NAME)
    save_png(draw_strip(image, tokens, maps), out / STRIP_NAME)
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


def evaluate(config: EvaluateConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Score every set; scores.parquet has one row per image and score, summary.json the estimates."""
    from cdkit.evaluation.scoring import score_set

    material = _read(config, context.progress)
    embedded = embed_material(config, material, context.progress)
    scored = {
        name: score_set(samples, embedded[name], resamples=config.resamples, seed=config.seed)
        for name, samples in material.sets.items()
    }
    every_set = scored
    if material.unrelated is not None:
        kept = score_unrelated(material.unrelated, embedded[UNRELATED], resamples=config.resamples, seed=config.seed)
        scored[MAIN].metrics |= kept.metrics
        every_set = {**scored, UNRELATED: kept}
    for name, scores in scored.items():
        for note in scores.notes:
            context.progress.note(note if name == MAIN else f"{name}: {note}")
    write_shard(out / SCORES_NAME, _table(every_set), fingerprint="scores")
    summary = _summary(config, material, scored)
    write_json(out / SUMMARY_NAME, summary)
    lines = summary["protocol"]["deviations"] if config.preset else []
    rows = sum(len(scores.rows) for scores in every_set.values())
    return Dataset(
        "scores",
        out.path,
        Counts(rows, rows),
        {"metrics": summary["metrics"], "sets": {name: entry["metrics"] for name, entry in summary["sets"].items()}},
        shortfall=f"not the paper's protocol: {'; '.join(lines)}" if lines else "",
    )


def _read(config: EvaluateConfig, progress: Progress) -> Material:
    sets = {MAIN: read_sample_set(Path(config.samples), config.tokens)}
    tokens = [*config.tokens, *sets[MAIN].tokens]
    sets |= {name: read_sample_set(Path(folder), tokens) for name, folder in config.compare.items()}
    photos = {category: _pictures(source, progress) for category, source in config.concepts.items()}
    reference = _pictures(config.reference, progress) if config.reference else None
    before = _before(Path(config.base_samples), sets[MAIN]) if config.base_samples else {}
    unrelated = None
    if config.unrelated and config.base_unrelated:
        unrelated = read_unrelated(Path(config.unrelated), Path(config.base_unrelated), tokens)
    return Material(sets, photos, reference, before, unrelated)


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
    shared = {key: base[key] for sample in wanted if (key := (sample.prompt, sample.seed)) in base}
    if not shared:
        raise InputError(
            f"{samples.folder} and {folder} have no class prompt and seed in common: drift cannot be measured.",
            hint='Draw the class prompt, such as "a photo of a dog" without the token, in both, at the same seeds.',
        )
    return shared


def _table(scored: Mapping[str, SetScores]) -> Any:
    import pyarrow as pa

    fields = dict.fromkeys(("set", "metric", "concept", "prompt"), pa.string())
    fields |= {"seed": pa.int64(), "path": pa.string(), "value": pa.float64()}
    rows = [
        (name, row.metric, row.concept or None, sample.prompt, sample.seed, sample.path, row.value)
        for name, scores in scored.items()
        for row in scores.rows
        for sample in [scores.samples.samples[row.place]]
    ]
    return pa.Table.from_pylist([dict(zip(fields, row, strict=True)) for row in rows], schema=pa.schema(fields))


def _summary(config: EvaluateConfig, material: Material, scored: Mapping[str, SetScores]) -> dict[str, Any]:
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
