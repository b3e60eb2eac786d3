"""A run folder as `cdkit run` leaves it: real samples and scores, the other steps' files written by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from pathlib import Path
from typing import Any

from cdkit.core.config import StageConfig, parse_config
from cdkit.core.manifest import Manifest
from cdkit.core.shards import write_shard
from cdkit.execute import execute
from cdkit.stages import STAGES

TRICKY = '<script>alert("x")</script> a star & a | pipe `code` [link](http://evil.example/)'
RUN = {"started": "2026-01-02T03:04:05+00:00", "ended": "2026-01-02T03:05:05+00:00", "seconds": 60.0}
RUN_RECORD = {**RUN, "peak_process_bytes": 1_234_567_890, "host": "secret-host", "python": "3.11.7", "cdkit": "0.1.0"}
PROMPTS = ["a photo of a star", "a photo of a <new1> star"]


def write_manifest(folder: Path, stage: str, *, shortfall: str = "", config: Any = None, **details: Any) -> None:
    """A finished step's manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    Manifest(
        stage=stage,
        version=1,
        fingerprint=f"{stage}-{folder.name}".ljust(64, "0"),
        config=config or {"seed": 3},
        inputs={},
        shortfall=shortfall,
        details=details,
        run=RUN_RECORD,
    ).write(folder)


def write_retrieved(folder: Path, *, images: int = 12, caption: str = TRICKY) -> Path:
    """A regularization set of small rendered pictures, the first one with the given caption."""
    import pyarrow as pa

    from cdkit.embedded import concept_photos

    photos = [photo for name in ("striped-star", "pink-heart", "framed-box") for photo in concept_photos(name)]
    rows = []
    for number in range(images):
        buffer = io.BytesIO()
        photos[number % len(photos)].save(buffer, format="JPEG")
        rows.append(
            {
                "key": f"{number:06d}",
                "image": {"bytes": buffer.getvalue(), "path": None},
                "caption": caption if number == 0 else f"a star, number {number}",
                "similarity": 0.99 - number / 200,
                "url": f"http://pictures-{number % 3}.example/{number}.jpg",
                "width": 256,
                "height": 256,
                "sha256": f"{number:064x}",
                "phash": f"{number:016x}",
                "source": "pool.parquet",
            }
        )
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.Table.from_pylist(rows)
    table = table.set_column(1, "image", pa.array([row["image"] for row in rows], type=image))
    write_shard(folder / "images" / "part-00000.parquet", table, fingerprint="x")
    edges = [0.85 + step / 100 for step in range(16)]
    write_manifest(
        folder,
        "retrieve",
        shortfall=f"{images} of 20 images found: 400 candidates, 30 tried.",
        asked=20,
        accepted=images,
        tried=30,
        threshold=0.85,
        prompts=["a photo of a star"],
        funnel=[
            {"step": "captions above the threshold", "count": 1400},
            {"step": "candidates", "count": 400},
            {"step": "tried", "count": 30},
            {"step": "accepted", "count": images},
        ],
        rejected={"http_404": 9, "near_duplicate": 6, "too_small": 3},
        similarities={"edges": edges, "counts": [1, 0, 2, 1, 3, 4, 5, 4, 6, 3, 2, 1, 0, 1, 1]},
    )
    return folder


def write_trained(folder: Path, *, steps: int = 120, finished: bool = True) -> Path:
    """A training step with a small real delta on the embedded model: some keys and values moved, one new token."""
    import torch

    from cdkit.deltas.base_model import base_hash, cross_attention_names
    from cdkit.deltas.delta import Delta, ModifierToken, save_delta
    from cdkit.embedded import load_pipeline

    folder.mkdir(parents=True, exist_ok=True)
    noise = random.Random(0)
    with (folder / "metrics.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["step", "loss", "target_loss", "regularization_loss", "seconds"])
        for step in range(1, steps + 1):
            target = 0.3 * math.exp(-step / 50) + 0.1 + noise.uniform(-0.04, 0.04)
            other = 0.12 + noise.uniform(-0.03, 0.03)
            writer.writerow([step, target + other, target, other, step * 0.2])
    if not finished:
        Manifest("train", 1, "t" * 64, {"steps": 250}, {}).write(folder, "started.json")
        return folder
    pipeline = load_pipeline()
    generator = torch.Generator().manual_seed(0)
    parameters = dict(pipeline.unet.named_parameters())
    changes = {
        name: parameters[name].detach() * 0.3 * torch.randn(parameters[name].shape, generator=generator)
        for name in cross_attention_names(pipeline.unet)
    }
    rows = {"text_encoder": pipeline.text_encoder.get_input_embeddings().weight[1234:1235].detach().clone()}
    token = ModifierToken("<new1>", "ktn", rows)
    save_delta(
        Delta("custom-diffusion", "embedded", base_hash(pipeline), changes, (token,), (PROMPTS[1],)),
        folder / "delta.safetensors",
    )
    write_manifest(
        folder,
        "train",
        config={"seed": 7, "batch_size": 4, "learning_rate": 8e-5},
        steps=steps,
        seconds=24.5,
        final_loss=0.213,
        method="custom-diffusion",
        tokens=["<new1>"],
        prompts=[PROMPTS[1]],
    )
    return folder


def write_picks(folder: Path) -> Path:
    """Rare tokens, one with neighbours."""
    picks = [
        {"token": "ktn", "token_id": 42170, "count": 6, "neighbours": [{"token": "xyz</w>", "similarity": 0.41}]},
        {"token": "pll", "token_id": 47629, "count": 8},
    ]
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "format": 1,
        "tokenizer": "clip",
        "picks": picks,
        "rejected": {"too_frequent": 40000, "not_alphabetic": 5},
    }
    (folder / "picks.json").write_text(json.dumps(found))
    write_manifest(folder, "tokens", tokenizer="clip", picks=picks)
    return folder


def run_stage(stage: str, folder: Path, **values: Any) -> None:
    """Execute one real stage into a step's folder."""
    config: type[StageConfig] = STAGES[stage].config_class()
    execute(stage, parse_config(config, values), folder)


def pretend_run(folder: Path, *, seeds: int = 3, steps: int = 4, prompts: list[str] | None = None) -> Path:
    """The whole run: retrieve, tokens, train, samples before and after, scores, weight change and attention."""
    drawn = prompts or PROMPTS
    write_retrieved(folder / "regularization")
    write_picks(folder / "picks")
    write_trained(folder / "tuned")
    shared = {"seeds": seeds, "steps": steps, "guidance": 4.0, "device": "cpu"}
    run_stage("sample", folder / "before", prompts=drawn[:1] + [p.replace("<new1> ", "") for p in drawn[2:]], **shared)
    run_stage("sample", folder / "images", deltas=[str(folder / "tuned")], prompts=drawn, **shared)
    run_stage(
        "evaluate",
        folder / "scores",
        samples=str(folder / "images"),
        compare={"base": str(folder / "before")},
        concepts={"star": "embedded:striped-star"},
        reference=str(folder / "regularization"),
        base_samples=str(folder / "before"),
    )
    run_stage("weight-change", folder / "change", tuned=str(folder / "tuned"))
    run_stage(
        "attention", folder / "attention", deltas=[str(folder / "tuned")], prompt=drawn[1], steps=steps, device="cpu"
    )
    write_run_record(folder)
    return folder


def write_run_record(folder: Path) -> None:
    """run.json, with one step that was never run."""
    stages = {
        "regularization": {
            "run": "retrieve",
            "index": "indexes/embedded",
            "prompts": ["a photo of a star"],
            "count": 20,
        },
        "picks": {"run": "tokens", "index": "indexes/embedded"},
        "tuned": {
            "run": "train",
            "base": "embedded",
            "concepts": {"star": "embedded:striped-star"},
            "regularization": {"star": "regularization"},
            "tokens": "picks",
            "steps": 120,
        },
        "before": {"run": "sample", "prompts": PROMPTS[:1]},
        "images": {"run": "sample", "deltas": ["tuned"], "prompts": PROMPTS},
        "scores": {"run": "evaluate", "samples": "images", "concepts": {"star": "embedded:striped-star"}},
        "change": {"run": "weight-change", "tuned": "tuned"},
        "attention": {"run": "attention", "deltas": ["tuned"], "prompt": PROMPTS[1]},
        "merged": {"run": "merge", "deltas": ["tuned", "tuned"], "index": "indexes/embedded"},
        "page": {"run": "report"},
    }
    record = {
        "pipeline": "one-concept",
        "description": "Teaches the embedded model a striped star from five photos.",
        "vars": {"category": "star", "photos": "embedded:striped-star", "note": TRICKY},
        "stages": stages,
    }
    (folder / "run.json").write_text(json.dumps(record))
