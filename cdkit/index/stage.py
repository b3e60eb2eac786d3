"""The index stage: import, embed and index in one folder, with recall measured before it is called done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.captions.config import ImportConfig
from cdkit.captions.importing import import_captions
from cdkit.core.errors import InputError
from cdkit.core.fingerprints import Input
from cdkit.core.protocols import Context, TextEncoder
from cdkit.core.shards import Dataset, parts, read_shard
from cdkit.core.storage import Folder, read_json, write_json
from cdkit.index.brute_force import HELD_OUT, sampled
from cdkit.index.caption_index import INDEX_FORMAT, INDEX_NAME, index_hash
from cdkit.index.codes import Shards, building_device, inspect_shards, write_compressed, write_exact
from cdkit.index.config import EmbedConfig, IndexConfig
from cdkit.index.layout import IndexSettings, Layout, choose_layout
from cdkit.index.recall import Recall, measure_recall, recall_warnings

if TYPE_CHECKING:
    import numpy as np


HELD_OUT_CAPTIONS = 200
BUILDING = "building"
EMBEDDINGS = "embeddings"
RESULT_NAME = "result.json"


def embed_pool(config: EmbedConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Import pools and embed their captions into `out`/embeddings; finished shards are not made again."""
    imported = _import(config, inputs, out, context)
    embedded = _embed(config, out, context)
    return Dataset("embeddings", out.path, imported.counts, {**imported.details, **embedded.details})


def _import(config: EmbedConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    import_config = ImportConfig.model_validate({name: getattr(config, name) for name in ImportConfig.model_fields})
    return import_captions(import_config, {"captions": inputs["captions"]}, out, context.of_earlier("import"))


def _embed(config: EmbedConfig, out: Folder, context: Context) -> Dataset:
    from cdkit.index.embedding import embed_captions

    return embed_captions(
        out / "captions",
        out.sub(EMBEDDINGS),
        config.encoder,
        context=context,
        precision=config.precision,
        device=config.device,
    )


def build_index(config: IndexConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Make `out` a caption index. Killed at any moment, it goes on where it was: no finished shard is made twice.

    Raises InputError naming the shard for damaged or NaN embeddings.
    """
    imported = _import(config, inputs, out, context)
    details = _finished(out, context.fingerprint)
    if details is None:
        details = _embed_and_index(config, imported.details, out, context)
        write_json(out.sub(BUILDING) / RESULT_NAME, {"fingerprint": context.fingerprint, "details": details})
    # Only now: were these gone before the result is recorded, a kill would cost making them again. The result stays.
    building = out.sub(BUILDING)
    building.remove([name for name in building.entries() if name != RESULT_NAME])
    if not config.keep_embeddings:
        out.remove([EMBEDDINGS])
    dropped = () if config.keep_embeddings else ("embed",)
    return Dataset("index", out.path, imported.counts, details, dropped=dropped)


def _finished(out: Folder, fingerprint: str) -> dict[str, Any] | None:
    """The details of a build that was killed between its last step and its manifest."""
    path = out / BUILDING / RESULT_NAME
    if not path.exists() or not (out / INDEX_NAME).exists():
        return None
    try:
        result = read_json(path)
        details: dict[str, Any] = result["details"]
        intact = result["fingerprint"] == fingerprint and index_hash(out / INDEX_NAME) == details["index"]["sha256"]
    except (InputError, LookupError, TypeError):
        # Nothing is lost by making it again.
        return None
    return details if intact else None


def _embed_and_index(config: IndexConfig, imported: dict[str, Any], out: Folder, context: Context) -> dict[str, Any]:
    from cdkit.encoders import load_text_encoder

    embedded = _embed(config, out, context)
    encoder = load_text_encoder(config.encoder, device=config.device, precision=config.precision)
    settings = IndexSettings(
        config.bytes_per_caption,
        config.exact_below,
        config.keep_embeddings,
        config.recall_target,
        config.seed,
        config.thread_count(),
        config.device,
    )
    return {**imported, **embedded.details, **index_embeddings(out, encoder, settings, context)}


def index_embeddings(out: Folder, encoder: TextEncoder, settings: IndexSettings, context: Context) -> dict[str, Any]:
    """Index `out`/embeddings into `out`/caption.index; returns the manifest's `index` and `recall` entries."""
    shards = inspect_shards(parts(out / EMBEDDINGS))
    if shards.dimension != encoder.dimension:
        raise InputError(
            f"The embeddings have {shards.dimension} dimensions, the encoder {encoder.spec!r} {encoder.dimension}.",
            hint="Embed the captions again with this encoder.",
        )
    layout = choose_layout(shards.count, shards.dimension, settings.bytes_per_caption, settings.exact_below)
    context.progress.note(f"{shards.count:,} captions: {layout.factory}")
    held_out = held_out_captions(shards, settings.seed)
    target = out / INDEX_NAME
    if layout.exact:
        write_exact(target, layout, shards)
    else:
        write_compressed(target, layout, shards, held_out, settings, context)
    recall = measure_recall(out, encoder, layout, shards, held_out, settings, context)
    for warning in recall_warnings(recall.as_json()):
        context.progress.note(warning)
    facts = index_facts(target, layout, shards, recall, settings)
    facts["shards"] = {
        "captions": len(parts(out / "captions")),
        "image_rows": len(parts(out / "image_rows")),
        "embeddings": len(shards.paths) if settings.keep_embeddings else 0,
    }
    return {"index": facts, "recall": recall.as_json()}


def index_facts(path: Path, layout: Layout, shards: Shards, recall: Recall, settings: IndexSettings) -> dict[str, Any]:
    """The manifest's `index` entry, but for the number of shards."""
    size = path.stat().st_size
    return {
        "format": INDEX_FORMAT,
        "factory": layout.factory,
        "exact": layout.exact,
        "vectors": shards.count,
        "bytes": size,
        "bytes_per_caption": round(size / shards.count, 2),
        "sha256": index_hash(path),
        "lists": layout.lists,
        "training_points": layout.training_points,
        "nprobe": recall.nprobe,
        "margin": recall.margin,
        "threads": settings.threads,
        "device": building_device(settings.device).partition(":")[0],
        "seed": settings.seed,
    }


def held_out_captions(shards: Shards, seed: int) -> np.ndarray:
    """Sorted ids of the captions to measure recall with: about 200, or a twentieth of a small index."""
    import numpy as np

    wanted = min(HELD_OUT_CAPTIONS, shards.count // 20)
    chosen = [np.empty(0, dtype=np.int64)]
    for path in shards.paths:
        ids = read_shard(path, ["caption_id"], kind="embeddings")["caption_id"].to_numpy()
        chosen.append(ids[sampled(ids, seed, HELD_OUT, wanted, shards.count)])
    return np.sort(np.concatenate(chosen))
