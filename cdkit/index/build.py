"""The index stage: import, embed and index in one folder, with recall measured before it is called done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cdkit.captions.import_captions import ImportConfig, import_captions
from cdkit.config import setting
from cdkit.datasets import Dataset, parts, read_shard
from cdkit.errors import InputError
from cdkit.index.brute_force import Queries
from cdkit.index.class_words import class_prompts
from cdkit.index.codes import Shards, inspect_shards, write_compressed, write_exact
from cdkit.index.opening import INDEX_FORMAT, INDEX_NAME
from cdkit.index.plan import CODE_BYTES, EXACT_BELOW, Layout, choose_layout
from cdkit.index.recall import RECALL_TARGET, Recall, measure, recall_warnings
from cdkit.index.records import KeyedTable, Records
from cdkit.index.sampling import HELD_OUT, sampled
from cdkit.inputs import Input
from cdkit.protocols import Context, TextEncoder
from cdkit.storage import Folder, SourceFile, content_fingerprint, read_json, write_json
from cdkit.text import caption_id, clean_captions

if TYPE_CHECKING:
    import numpy as np

HELD_OUT_CAPTIONS = 200
EXACT_QUERIES = 50
BUILDING = "building"
EMBEDDINGS = "embeddings"
RESULT_NAME = "result.json"


class EmbedConfig(ImportConfig):
    """Settings of the embed stage: import, then embed, in one folder."""

    encoder: str = setting("embedded", "Text encoder: embedded, open_clip:…, transformers:….", input="encoder")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = setting(
        "auto", "Number format of the encoder; auto is fp16 on a GPU, fp32 elsewhere."
    )
    device: str | None = setting(None, "Torch device [default: every GPU there is, else the CPU].", execution=True)


class IndexConfig(EmbedConfig):
    """Settings of the index stage."""

    bytes_per_caption: int = setting(
        CODE_BYTES, "Bytes of one compressed embedding; its 8-byte id comes on top.", ge=4, le=256
    )
    exact_below: int = setting(EXACT_BELOW, "Up to this many captions the index is exact, not compressed.", ge=0)
    keep_embeddings: bool = setting(False, "Keep the embeddings: faster re-ranking for more disk.")
    recall_target: float = setting(RECALL_TARGET, "Threshold recall to choose search settings for.", gt=0, le=1)
    seed: int = setting(0, "Seed of the training sample and of the measuring queries.", ge=0)


def embed_pool(config: EmbedConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Import pools and embed their captions into `out`/embeddings; finished shards are not made again."""
    imported = _import(config, inputs, out, context)
    embedded = _embed(config, out, context)
    return Dataset("embeddings", out.path, imported.counts, {**imported.details, **embedded.details})


def _import(config: EmbedConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    import_config = ImportConfig.model_validate({name: getattr(config, name) for name in ImportConfig.model_fields})
    return import_captions(import_config, {"captions": inputs["captions"]}, out, context.of_earlier("import"))


def _embed(config: EmbedConfig, out: Folder, context: Context) -> Dataset:
    from cdkit.index.text_embeddings import embed_captions

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
    result = read_json(path)
    details: dict[str, Any] = result["details"]
    intact = result["fingerprint"] == fingerprint and index_hash(out / INDEX_NAME) == details["index"]["sha256"]
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
    )
    return {**imported, **embedded.details, **index_embeddings(out, encoder, settings, context)}


@dataclass(frozen=True)
class IndexSettings:
    """What decides the FAISS file and its search settings."""

    bytes_per_caption: int = CODE_BYTES
    exact_below: int = EXACT_BELOW
    keep_embeddings: bool = False
    recall_target: float = RECALL_TARGET
    seed: int = 0
    threads: int = 1


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
        write_compressed(
            target, layout, shards, held_out, seed=settings.seed, threads=settings.threads, context=context
        )
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
        "seed": settings.seed,
    }


def index_hash(path: Path) -> str:
    """sha256 of an index file, remembered by size and mtime so that searches need not hash it again."""
    return content_fingerprint(SourceFile(str(path), path.name, path.stat().st_size))


def held_out_captions(shards: Shards, seed: int) -> np.ndarray:
    """Sorted ids of the captions to measure recall with: about 200, or a twentieth of a small index."""
    import numpy as np

    wanted = min(HELD_OUT_CAPTIONS, shards.count // 20)
    chosen = [np.empty(0, dtype=np.int64)]
    for path in shards.paths:
        ids = read_shard(path, ["caption_id"], kind="embeddings")["caption_id"].to_numpy()
        chosen.append(ids[sampled(ids, seed, HELD_OUT, wanted, shards.count)])
    return np.sort(np.concatenate(chosen))


def measure_recall(
    out: Folder,
    encoder: TextEncoder,
    layout: Layout,
    shards: Shards,
    held_out: np.ndarray,
    settings: IndexSettings,
    context: Context,
) -> Recall:
    """Recall with the held-out captions, and with class prompts that are not captions of this index."""
    import numpy as np

    from cdkit.index.faiss_index import faiss_threads, open_faiss
    from cdkit.index.search import encode_queries

    prompts = class_prompts()
    ids = np.array([caption_id(prompt) for prompt in clean_captions(prompts)], dtype=np.int64)
    tables = KeyedTable(out / "captions").rows(ids, ["caption_id"])
    indexed = {number for table in tables for number in table["caption_id"].to_pylist()}
    texts = list(Records(out.path).captions(held_out).values())
    texts += [prompt for prompt, number in zip(prompts, ids.tolist(), strict=True) if number not in indexed]
    if layout.exact:
        # Nothing is approximated but the last digits, so a few queries show that the file is whole.
        texts = texts[:: max(1, len(texts) // EXACT_QUERIES)]
    queries = Queries(encode_queries(encoder, texts), held_out)
    with context.progress.task("measuring recall", None) as task, faiss_threads(settings.threads):
        recall = measure(
            open_faiss(out / INDEX_NAME, exact=layout.exact, nprobe=1),
            shards.paths,
            queries,
            threshold=encoder.default_threshold,
            seed=settings.seed,
            target=settings.recall_target,
            lists=max(1, layout.lists),
        )
        task.advance(len(texts))
    return recall
