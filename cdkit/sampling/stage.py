"""The sample stage: every prompt with every seed, resumable image by image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdkit.core.fingerprints import Input
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset, write_shard
from cdkit.core.storage import Folder
from cdkit.deltas.delta import delta_tokens
from cdkit.pictures.grid import write_grid
from cdkit.sampling.config import SampleConfig
from cdkit.sampling.drawing import caption_prompts, draw_missing, gather_prompts, grid_blocks, plan_samples


def sample(config: SampleConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Draw what is not drawn yet; the same prompt and seed give the same image whatever the batch size."""
    import pyarrow as pa

    captions = (
        caption_prompts(Path(config.index), config.captions_count, config.without, context) if config.index else []
    )
    prompts = gather_prompts([*config.prompts, *captions], config.prompts_file)
    samples = plan_samples(prompts, config)
    images = out.sub("images")
    missing = [entry for entry in samples if not (images / entry.name).exists()]
    seconds = draw_missing(config, prompts, missing, images.path, context) if missing else 0.0
    columns: dict[str, list[Any]] = {
        "prompt": [entry.prompt for entry in samples],
        "seed": [entry.seed for entry in samples],
        "path": [f"images/{entry.name}" for entry in samples],
        "delta": [config.deltas or None] * len(samples),
    }
    types = [("prompt", pa.string()), ("seed", pa.int64()), ("path", pa.string()), ("delta", pa.list_(pa.string()))]
    write_shard(out / "samples.parquet", pa.table(columns, schema=pa.schema(types)), fingerprint="samples")
    write_grid(grid_blocks(samples, images.path), out / "grid.png", columns=config.seeds)
    scheduler, steps, guidance = config.drawn_with()
    details: dict[str, Any] = {"samples": len(samples), "scheduler": scheduler, "steps": steps, "guidance": guidance}
    details["tokens"] = delta_tokens(config.deltas)
    clocks = {"drawn": len(missing), "drawing_seconds": round(seconds, 3)}
    return Dataset("samples", out.path, Counts(len(samples), len(samples)), details, clocks=clocks)
