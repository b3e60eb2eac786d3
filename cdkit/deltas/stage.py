"""The delta-compress stage: a delta's matrices as products of low rank, with the error measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.devices import choose_device
from cdkit.core.errors import ConfigError, InputError
from cdkit.core.fingerprints import Input
from cdkit.core.formatting import command_line
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset
from cdkit.core.storage import TEMPORARY_PREFIX, Folder
from cdkit.deltas.apply import check_fit
from cdkit.deltas.base_model import EMBEDDED, base_hash, in_hub_cache, load_base_model
from cdkit.deltas.config import DEFAULT_ERROR, CompressConfig, ExportConfig, ImportDeltaConfig
from cdkit.deltas.delta import (
    DELTA_NAME,
    ON_TOP_OF,
    Delta,
    LowRank,
    ModifierToken,
    check_changes,
    delta_path,
    load_delta,
    matrix,
    norm,
    save_delta,
)
from cdkit.deltas.formats.lora import DIFFUSERS_LORA_NAME, write_diffusers_lora, write_kohya_lora
from cdkit.deltas.formats.names import (
    SDXL_WIDTH,
    kohya_module,
    lora_name,
    module_of,
    underscored,
)
from cdkit.deltas.formats.pipeline import write_pipeline
from cdkit.deltas.formats.reading import Found, shown
from cdkit.deltas.formats.recognition import read_foreign
from cdkit.deltas.formats.textual_inversion import stored_prompts, write_embeddings
from cdkit.deltas.formats.webui import write_full_matrices
from cdkit.deltas.low_rank import approximate, relative_error
from cdkit.deltas.pipeline_folder import MODEL_INDEX

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline


def compress(config: CompressConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write the compressed delta; a matrix whose factors would be no smaller stays whole."""
    delta = load_delta(config.delta)
    matrices = {name: change for name, change in delta.changes.items() if len(change.shape) == 2}
    with context.progress.task("low-rank factors", len(matrices), unit="matrices") as task:
        products = approximate(matrices, rank=config.rank, max_error=config.max_error, advance=lambda: task.advance(1))
    kept: dict[str, torch.Tensor | LowRank] = {
        name: product for name, product in products.items() if _smaller(product, matrices[name])
    }
    changes = {**delta.changes, **kept}
    settings = {**delta.settings, "compressed": {"rank": config.rank, "max_error": config.max_error}}
    save_delta(replace(delta, changes=changes, settings=settings), out / DELTA_NAME)
    found = load_delta(out.path).changes
    details = {
        "error": max((relative_error(change, found[name]) for name, change in matrices.items()), default=0.0),
        "rank": max((change.rank for change in found.values() if isinstance(change, LowRank)), default=0),
        "whole": sorted(set(matrices) - set(kept)),
        "bytes_before": delta_path(config.delta).stat().st_size,
        "bytes": (out / DELTA_NAME).stat().st_size,
    }
    return Dataset("delta", out.path, Counts(len(matrices), len(matrices)), details)


def _smaller(product: LowRank, change: torch.Tensor | LowRank) -> bool:
    """Whether the factors take fewer numbers than what is stored now."""
    now = change.up.numel() + change.down.numel() if isinstance(change, LowRank) else change.numel()
    return product.up.numel() + product.down.numel() < now


LORAS, EMBEDDINGS = "loras", "embeddings"
# Products that stand for more than this, 2 GB, are written as whole matrices only when a base model shows that such
# matrices exist.
LARGEST_UNCHECKED = 1 << 29
DIFFUSERS_ALONE = (
    "This LoRA is for diffusers: ComfyUI, A1111 and Forge do nothing with it. For them use --to webui-diff or "
    "kohya-lora."
)
SDXL_POOLING = (
    "SDXL's second text encoder takes the prompt's summary at the largest token id, which a new token has. After "
    "loading the embeddings: pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id "
    "(--to diffusers-pipeline has it set)."
)


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
    with _all_or_nothing(out) as folder:
        if config.to == "diffusers-pipeline":
            base = config.base or recorded_base(delta, context.progress.note)
            # Scaled when it is applied: there is one rounding then.
            write_pipeline(delta, base, folder.path, scale=config.scale, half=config.half, note=context.progress.note)
        else:
            if config.base is not None:
                check_fit(load_base_model(config.base, device=choose_device("cpu")), delta)
            details |= _write(config, scaled(delta, config.scale), folder, lora_name(out.path), context)
        written = [path for path in sorted(folder.path.rglob("*")) if path.is_file() and not path.name.startswith(".")]
        details["files"] = [str(path.relative_to(folder.path)) for path in written]
        details["bytes"] = sum(path.stat().st_size for path in written)
    details["tokens"] = [token.text for token in delta.tokens]
    return Dataset("export", out.path, Counts(len(written), len(written)), details)


def recorded_base(delta: Delta, note: Callable[[str], None]) -> str:
    """The base model that a delta says it was made on, when it is on this machine: nothing is downloaded for it.

    Raises ConfigError that names it when it is not.
    """
    base = delta.base
    if base and (base == EMBEDDED or os.path.exists(os.path.expanduser(base)) or in_hub_cache(base)):
        note(f"The base model is the one that the delta names: {base}")
        return base
    where = f"It was {base}, which is not on this machine" if base else "The delta does not say which it was"
    raise ConfigError(
        f"diffusers-pipeline needs the base model that the delta was made on. {where}.",
        hint=f"Add --base {command_line(base)}, or where that model is now." if base else "Add --base MODEL.",
    )


@contextmanager
def _all_or_nothing(out: Folder) -> Iterator[Folder]:
    """A folder whose entries move into `out` together at the end, and are gone when something fails before."""
    temporary = out.sub(f"{TEMPORARY_PREFIX}export")
    try:
        yield temporary
        # A pipeline folder is one from the moment that its index is there.
        for name in sorted(os.listdir(temporary.path), key=lambda entry: entry == MODEL_INDEX):
            out.remove([name])  # a killed export may have moved it already
            os.replace(temporary / name, out / name)
    finally:
        out.remove([temporary.path.name])


def scaled(delta: Delta, scale: float) -> Delta:
    """The delta with its weights' changes times `scale`; tokens stay as they are."""
    if scale == 1.0:
        return delta
    changes = {
        name: LowRank(change.up * scale, change.down) if isinstance(change, LowRank) else change * scale
        for name, change in delta.changes.items()
    }
    return replace(delta, changes=changes)


def _write(config: ExportConfig, delta: Delta, out: Folder, name: str, context: Context) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if config.to == "textual-inversion":
        if not delta.tokens:
            raise ConfigError("This delta has no modifier token to export.", hint="Its weights go to a LoRA.")
    elif not delta.changes:
        raise ConfigError("This delta changed no weights.", hint="Export its tokens: --to textual-inversion.")
    elif config.to == "webui-diff":
        _check_unpacked(config, delta)
        write_full_matrices(delta, out / LORAS / f"{name}.safetensors", half=config.half)
        details["error"] = max(_stored_error(change, change, config.half) for change in delta.changes.values())
    else:
        details |= _write_lora(config, delta, out, name, context)
    if delta.tokens:
        files = write_embeddings(delta, out / EMBEDDINGS, half=config.half)
        details["embeddings"] = {text: f"{EMBEDDINGS}/{path.name}" for text, path in files.items()}
        if any("text_encoder_2" in token.rows for token in delta.tokens):
            context.progress.note(SDXL_POOLING)
    return details


def _check_unpacked(config: ExportConfig, delta: Delta) -> None:
    """Raise ConfigError when a small file's factors stand for matrices that no base model was asked about."""
    values = sum(change.shape[0] * change.shape[1] for change in delta.changes.values() if isinstance(change, LowRank))
    if config.base is None and values > LARGEST_UNCHECKED:
        raise ConfigError(
            f"As whole matrices the changes of {config.delta} take {values * 4 / 1e9:.1f} GB.",
            hint="Add --base MODEL, which shows that they have its shapes; or use --to kohya-lora, which is small.",
        )


def _write_lora(config: ExportConfig, delta: Delta, out: Folder, name: str, context: Context) -> dict[str, Any]:
    whole = all(not isinstance(change, LowRank) for change in delta.changes.values())
    max_error = DEFAULT_ERROR if whole and config.rank is None and config.max_error is None else config.max_error
    held = _matrices(delta, context)
    with context.progress.task("low-rank factors", len(held), unit="matrices") as task:
        products = approximate(
            held, rank=config.rank, max_error=max_error, uniform=True, advance=lambda: task.advance(1)
        )
    if config.to == "diffusers-lora":
        context.progress.note(DIFFUSERS_ALONE)
        write_diffusers_lora(delta, products, out / DIFFUSERS_LORA_NAME, half=config.half)
    else:
        write_kohya_lora(delta, products, out / LORAS / f"{name}.safetensors", half=config.half)
    numbers = sum(product.up.numel() + product.down.numel() for product in products.values())
    matrices = sum(change.shape[0] * change.shape[1] for change in held.values())
    if numbers >= matrices:
        context.progress.note(
            f"This LoRA holds {numbers:,} numbers, the full matrices only {matrices:,}: "
            "--to webui-diff, a lower --rank or a higher --max-error is smaller."
        )
    errors = [_stored_error(held[layer], product, config.half) for layer, product in products.items()]
    return {"error": max(errors), "rank": max(product.rank for product in products.values())}


def _matrices(delta: Delta, context: Context) -> dict[str, Any]:
    """What a LoRA can hold of a delta: matrices, and convolutions as matrices of their outputs.

    Biases and norms are left out with a note of how much of the change they are. Raises ConfigError when nothing else
    changed.
    """
    held = {
        name: matrix(change).flatten(1) if len(change.shape) > 2 else change
        for name, change in delta.changes.items()
        if len(change.shape) > 1
    }
    left = [matrix(change) for name, change in delta.changes.items() if name not in held]
    if not held:
        raise ConfigError(
            f"{next(iter(delta.changes))} is no matrix: a LoRA cannot hold it.", hint="Use --to webui-diff."
        )
    if any(change.any() for change in left):
        whole = sum(norm(change) ** 2 for change in (*held.values(), *left)) ** 0.5
        share = sum(norm(change) ** 2 for change in left) ** 0.5 / whole
        context.progress.note(
            f"{len(left)} biases and norms changed too, which a LoRA cannot hold: left out, {share:.1%} of the whole "
            "change. --to webui-diff or diffusers-pipeline has everything."
        )
    return held


def _stored_error(change: Any, stored: Any, half: bool) -> float:
    """The error of a matrix against what the file holds of it, its rounding to fp16 included."""
    if half:
        stored = (
            LowRank(stored.up.half().float(), stored.down.half().float())
            if isinstance(stored, LowRank)
            else matrix(stored).half().float()
        )
    return relative_error(change, stored)


SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
# Where cdkit's own exports and the web UIs keep files, beside the folder itself.
_SUBFOLDERS = ("", "loras", "embeddings")
# A fine-tuning moves keys and values by a few per cent; another base model's differ by more than this.
SUSPICIOUS = 0.5


def import_delta(config: ImportDeltaConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Read the files without running anything in them, and write delta.safetensors.

    Raises InputError for files that are damaged, hostile or of another kind, ConfigError when the base model is
    missing or another one, or the files do not belong together.
    """
    found = [read_foreign(path) for path in gather_files([Path(file) for file in config.files])]
    sources = [one for one in found if one.full or one.changes or one.named]
    if len(sources) > 1:
        raise ConfigError(
            f"{sources[0].path.name} and {sources[1].path.name} both hold weights.",
            hint="Import them one by one, and merge the deltas.",
        )
    needing = [one for one in sources if one.full or one.named]
    if needing and config.base is None:
        recorded = _stated(needing[0].header, "cdkit_base")
        raise ConfigError(
            f"{needing[0].path.name} can be told apart from its base model only with it.",
            hint=f"Add --base {command_line(recorded) if recorded else 'MODEL, the model it was trained on'}.",
        )
    pipeline = load_base_model(config.base, device=choose_device("cpu")) if config.base is not None else None
    changes = _changes(sources[0], pipeline) if sources else {}
    tokens = _tokens(found, config.tokens)
    delta = _delta(config, sources[0] if sources else found[0], changes, tokens, pipeline)
    if pipeline is not None:
        check_fit(pipeline, delta)
        _note_size(sources[0] if sources else found[0], changes, pipeline, context)
    save_delta(delta, out / DELTA_NAME)
    details = {
        "kind": (sources or found)[0].kind,
        "layers": len(changes),
        "tokens": [token.text for token in tokens],
        "prompts": list(delta.prompts),
        "files": [one.path.name for one in found],
    }
    return Dataset("delta", out.path, Counts(len(found), len(found)), details)


def gather_files(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the weight files of the folders named; of one name the safetensors file is taken."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        files = [file for sub in _SUBFOLDERS for file in sorted((path / sub).glob("*")) if file.suffix in SUFFIXES]
        safe = {(file.parent, file.stem) for file in files if file.suffix == ".safetensors"}
        found += [file for file in files if file.suffix == ".safetensors" or (file.parent, file.stem) not in safe]
        if not files:
            raise InputError(f"{path} holds no weight files.", hint=f"They end in {', '.join(SUFFIXES)}.")
    return found


def _changes(source: Found, pipeline: DiffusionPipeline | None) -> dict[str, torch.Tensor | LowRank]:
    """Differences from the base by its parameter names; raises ConfigError for what the base does not have."""
    changes: dict[str, torch.Tensor | LowRank] = dict(source.changes)
    parameters = dict(pipeline.unet.named_parameters()) if pipeline is not None else {}
    names = _kohya_names(parameters) if source.named else {}
    for (module, kind), change in source.named.items():
        name = names.get((module, kind), f"{module}.{kind}")
        if name in changes:
            raise InputError(f"{source.path} changes {name} twice, under two names.", hint="Damaged file.")
        changes[name] = change
    for name, weight in source.full.items():
        base = parameters.get(name)
        if base is None or base.shape != weight.shape:
            shape = "no such parameter" if base is None else f"the shape {tuple(base.shape)}"
            raise ConfigError(
                f"{source.path.name} has {shown(name)} of shape {tuple(weight.shape)}; the base model has {shape}.",
                hint="Give the base model it was trained on.",
            )
        changes[name] = weight - base.detach().float().cpu()
    try:
        check_changes(changes)
    except ValueError as error:
        raise InputError(f"{source.path}: {error}.", hint="Damaged file.") from error
    return changes


def _kohya_names(parameters: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Parameter names by kohya's name of the module, in both spellings, and `weight` or `bias`."""
    found = {}
    for name in parameters:
        module, kind = module_of(name)
        found[kohya_module(module, SDXL_WIDTH), kind] = name
        found[underscored(module), kind] = name
    return found


def _note_size(
    source: Found, changes: Mapping[str, torch.Tensor | LowRank], pipeline: DiffusionPipeline, context: Context
) -> None:
    """Say so when a change is larger than a fine-tuning makes."""
    parameters = dict(pipeline.unet.named_parameters())
    ratios = [
        norm(change) / max(float(parameters[name].detach().float().norm()), 1e-12) for name, change in changes.items()
    ]
    if ratios and max(ratios) > SUSPICIOUS:
        context.progress.note(
            f"{source.path.name} moves a matrix by {max(ratios):.0%} of its norm: was it trained on this base model?"
        )


def _tokens(found: Sequence[Found], names: Sequence[str]) -> list[ModifierToken]:
    tokens = [token for one in found for token in one.tokens]
    if names and len(names) != len(tokens):
        raise ConfigError(
            f"There are {len(names)} names for {len(tokens)} tokens.", hint="Give one --token per token, in order."
        )
    if names:
        tokens = [replace(token, text=name) for token, name in zip(tokens, names, strict=True)]
    texts = [token.text for token in tokens]
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise ConfigError(f"The token {twice[0]} is there twice.", hint="Leave one of the files out.")
    return tokens


def _stated(header: Mapping[str, str], name: str) -> str:
    """What a file says of itself in one line; empty when it does not, or not in one."""
    text = header.get(name, "")
    return text if text.isprintable() else ""


def _delta(
    config: ImportDeltaConfig,
    source: Found,
    changes: Mapping[str, torch.Tensor | LowRank],
    tokens: Sequence[ModifierToken],
    pipeline: DiffusionPipeline | None,
) -> Delta:
    prompts = list(config.prompts) or stored_prompts(source.header)
    if not prompts and config.category:
        prompts = [f"photo of a {token.text} {config.category}" for token in tokens]
        prompts = prompts or [f"photo of a {config.category}"]
    settings: dict[str, Any] = {"imported": source.kind}
    if config.category:
        settings["concepts"] = {config.category: ""}
    return Delta(
        method=_stated(source.header, "cdkit_method") or source.kind,
        base=config.base or _stated(source.header, "cdkit_base"),
        base_hash=base_hash(pipeline) if pipeline is not None else _stated(source.header, "cdkit_base_hash"),
        changes=dict(changes),
        tokens=tuple(tokens),
        prompts=tuple(prompts),
        settings=settings,
    )
