"""The stages of delta files: import other tools' files, compress, export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError
from cdkit.core.fingerprints import Input
from cdkit.core.formatting import command_line
from cdkit.core.machine import choose_device
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset
from cdkit.core.storage import Folder
from cdkit.deltas.apply import check_fit
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.config import CompressConfig, ExportConfig, ImportDeltaConfig
from cdkit.deltas.delta import DELTA_NAME, ON_TOP_OF, delta_path, load_delta, save_delta
from cdkit.deltas.exporting import all_or_nothing, lora_name, recorded_base, scaled, write_format, write_pipeline
from cdkit.deltas.importing import (
    gather_files,
    imported_changes,
    imported_delta,
    imported_tokens,
    note_size,
    read_foreign,
    stated,
)
from cdkit.deltas.low_rank import LowRank, approximate, relative_error, stored_numbers

if TYPE_CHECKING:
    import torch


def compress(config: CompressConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write the compressed delta; a matrix whose factors would be no smaller stays whole."""
    delta = load_delta(config.delta)
    parts = [_compressed(changes, config, context) for changes in delta.all_changes]
    gated = tuple(replace(gate, changes=part) for gate, part in zip(delta.gated, parts[1:], strict=True))
    settings = {**delta.settings, "compressed": {"rank": config.rank, "max_error": config.max_error}}
    save_delta(replace(delta, changes=parts[0], gated=gated, settings=settings), out / DELTA_NAME)
    pairs = [
        (name, change, stored[name])
        for before, stored in zip(delta.all_changes, load_delta(out.path).all_changes, strict=True)
        for name, change in before.items()
        if len(change.shape) == 2
    ]
    details = {
        "error": max((relative_error(change, stored) for _, change, stored in pairs), default=0.0),
        "rank": max((stored.rank for _, _, stored in pairs if isinstance(stored, LowRank)), default=0),
        "whole": sorted(name for name, _, stored in pairs if not isinstance(stored, LowRank)),
        "bytes_before": delta_path(config.delta).stat().st_size,
        "bytes": (out / DELTA_NAME).stat().st_size,
    }
    return Dataset("delta", out.path, Counts(len(pairs), len(pairs)), details)


def _compressed(
    changes: Mapping[str, torch.Tensor | LowRank], config: CompressConfig, context: Context
) -> dict[str, torch.Tensor | LowRank]:
    """The changes with every matrix whose factors are smaller as a product."""
    matrices = {name: change for name, change in changes.items() if len(change.shape) == 2}
    with context.progress.task("low-rank factors", len(matrices), unit="matrices") as task:
        products = approximate(matrices, rank=config.rank, max_error=config.max_error, advance=lambda: task.advance(1))
    smaller = {
        name: product for name, product in products.items() if stored_numbers(product) < stored_numbers(matrices[name])
    }
    return {**changes, **smaller}


def export(config: ExportConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write the files; matrices' files come with the tokens' embeddings beside them.

    Raises ConfigError when the format cannot hold the delta or it does not fit the base, InputError when a value does
    not fit into fp16.
    """
    delta = load_delta(config.delta)
    if delta.settings.get(ON_TOP_OF):
        context.progress.note(
            "This delta was trained on top of another one: export that one too, and load both; with a pipeline's "
            "folder, export the first, then the second with the first's folder as --base."
        )
    details: dict[str, Any] = {"to": config.to, "error": 0.0, "rank": None}
    with all_or_nothing(out) as folder:
        if config.to == "diffusers-pipeline":
            base = config.base or recorded_base(delta, context.progress.note)
            # Scaled when it is applied: there is one rounding then.
            write_pipeline(delta, base, folder.path, scale=config.scale, half=config.half, note=context.progress.note)
        else:
            if config.base is not None:
                check_fit(load_base_model(config.base, device=choose_device("cpu")), delta)
            details |= write_format(config, scaled(delta, config.scale), folder, lora_name(out.path), context)
        written = [path for path in sorted(folder.path.rglob("*")) if path.is_file() and not path.name.startswith(".")]
        details["files"] = [str(path.relative_to(folder.path)) for path in written]
        details["bytes"] = sum(path.stat().st_size for path in written)
    details["tokens"] = [token.text for token in delta.tokens]
    details["family"] = str(delta.settings.get("family", ""))
    return Dataset("export", out.path, Counts(len(written), len(written)), details)


def import_delta(config: ImportDeltaConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Read the files without running anything in them, and write delta.safetensors.

    Raises InputError for files that are damaged, hostile or of another kind, ConfigError when the base model is
    missing or another one, or the files do not belong together.
    """
    files = [read_foreign(path) for path in gather_files([Path(file) for file in config.files])]
    sources = [file for file in files if file.full or file.changes or file.named]
    if len(sources) > 1:
        raise ConfigError(
            f"{sources[0].path.name} and {sources[1].path.name} both hold weights.",
            hint="Import them one by one, and merge the deltas.",
        )
    source = (sources or files)[0]
    if (source.full or source.named) and config.base is None:
        recorded = stated(source.header, "cdkit_base")
        raise ConfigError(
            f"{source.path.name} can be told apart from its base model only with it.",
            hint=f"Add --base {command_line(recorded) if recorded else 'MODEL, the model it was trained on'}.",
        )
    pipeline = load_base_model(config.base, device=choose_device("cpu")) if config.base is not None else None
    changes = imported_changes(source, pipeline)
    tokens = imported_tokens(files, config.tokens)
    delta = imported_delta(config, source, changes, tokens, pipeline)
    if pipeline is not None:
        check_fit(pipeline, delta)
        note_size(source, changes, pipeline, context)
    save_delta(delta, out / DELTA_NAME)
    details = {
        "kind": source.kind,
        "layers": len(changes),
        "tokens": [token.text for token in tokens],
        "prompts": list(delta.prompts),
        "files": [file.path.name for file in files],
    }
    return Dataset("delta", out.path, Counts(len(files), len(files)), details)
