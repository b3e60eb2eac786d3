"""A delta as files that other tools load, with the error of every approximation measured."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cdkit.core.errors import ConfigError, InputError, pip_install
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.formatting import command_line
from cdkit.core.machine import choose_device
from cdkit.core.protocols import Context
from cdkit.core.storage import TEMPORARY_PREFIX, Folder, flush
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import in_hub_cache, load_base_model
from cdkit.deltas.config import DEFAULT_ERROR, ExportConfig
from cdkit.deltas.delta import Delta
from cdkit.deltas.families.table import family_by_name, family_of
from cdkit.deltas.formats.lora import DIFFUSERS_LORA_NAME, write_diffusers_lora, write_full_matrices, write_kohya_lora
from cdkit.deltas.formats.textual_inversion import file_stems, spellings, write_embeddings
from cdkit.deltas.gating import PIPELINE_CODE, write_gates
from cdkit.deltas.low_rank import LowRank, approximate, matrix, norm, relative_error, stored_numbers
from cdkit.deltas.pipeline_folder import MODEL_INDEX, quiet
from cdkit.deltas.text_features import TOWERS, text_towers

# Products that stand for more than this, 2 GB, are written as whole matrices only when a base model shows that such
# matrices exist.
LORAS, EMBEDDINGS = "loras", "embeddings"
LARGEST_UNCHECKED = 1 << 29
DIFFUSERS_ALONE = (
    "This LoRA is for diffusers: ComfyUI, A1111 and Forge do nothing with it. For them use --to webui-diff or "
    "kohya-lora."
)
ROWS_BY_HAND = (
    "No pipeline of diffusers loads the words' rows of this family by itself. For each text encoder of the embeddings "
    "file: tokenizer.add_tokens([word]), text_encoder.resize_token_embeddings(len(tokenizer)), and the row goes to "
    "text_encoder.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(word)]; --to diffusers-pipeline has "
    "all of that done."
)
SDXL_POOLING = (
    "SDXL's second text encoder takes the prompt's summary at the largest token id, which a new token has. After "
    "loading the embeddings: pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id "
    "(--to diffusers-pipeline has it set)."
)


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
def all_or_nothing(out: Folder) -> Iterator[Folder]:
    """A folder whose entries move into `out` together at the end, and are gone when something fails before."""
    temporary = out.sub(f"{TEMPORARY_PREFIX}export")
    try:
        yield temporary
        flush(temporary.path)
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


def write_format(config: ExportConfig, delta: Delta, out: Folder, name: str, context: Context) -> dict[str, Any]:
    """Write the files of a format but diffusers-pipeline; returns their measured error and where embeddings lie."""
    details: dict[str, Any] = {}
    if delta.gated and config.to != "textual-inversion":
        raise ConfigError(
            f"This delta acts at the words {', '.join(word for gate in delta.gated for word in gate.words)} alone; "
            f"{config.to} can only change a model for every word.",
            hint="Use --to diffusers-pipeline, whose folder brings the code for it; or train custom-diffusion.",
        )
    if delta.part == "transformer":
        _check_transformer(config, delta)
    if config.to == "textual-inversion":
        if not delta.tokens:
            raise ConfigError("This delta has no modifier token to export.", hint="Its weights go to a LoRA.")
    elif not delta.changes:
        raise ConfigError("This delta changed no weights.", hint="Export its tokens: --to textual-inversion.")
    elif config.to == "webui-diff":
        values = sum(math.prod(change.shape) for change in delta.changes.values() if isinstance(change, LowRank))
        if config.base is None and values > LARGEST_UNCHECKED:
            raise ConfigError(
                f"As whole matrices the changes of {config.delta} take {values * 4 / 1e9:.1f} GB.",
                hint="Add --base MODEL, which shows that they have its shapes; or use --to kohya-lora, "
                "which is small.",
            )
        write_full_matrices(delta, out / LORAS / f"{name}.safetensors", half=config.half)
        details["error"] = max(_stored_error(change, change, config.half) for change in delta.changes.values())
    else:
        details |= _write_lora(config, delta, out, name, context)
    if delta.tokens:
        files = write_embeddings(delta, out / EMBEDDINGS, half=config.half)
        details["embeddings"] = {text: f"{EMBEDDINGS}/{path.name}" for text, path in files.items()}
        if delta.part == "transformer":
            context.progress.note(ROWS_BY_HAND)
        elif any("text_encoder_2" in token.rows for token in delta.tokens):
            context.progress.note(SDXL_POOLING)
    return details


def _check_transformer(config: ExportConfig, delta: Delta) -> None:
    """Raise ConfigError for formats that cannot hold a transformer's delta, or that nothing would load."""
    family = family_by_name(str(delta.settings.get("family", "")))
    if config.to not in ("diffusers-lora", "textual-inversion") or (family and not family.reads_lora):
        raise ConfigError(
            f"{config.to} cannot hold a delta of {family.name if family else 'a transformer'}: nothing would load it.",
            hint="Use --to diffusers-pipeline"
            + ("." if family and not family.reads_lora else ", or --to diffusers-lora."),
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
    numbers = sum(map(stored_numbers, products.values()))
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


def write_pipeline(
    delta: Delta, base: str, folder: Path, *, scale: float, half: bool, note: Callable[[str], None]
) -> None:
    """Save the base with the delta's weights added and its tokens in the tokenizers."""
    import torch

    pipeline = load_base_model(base, device=choose_device("cpu"))
    apply_deltas(pipeline, [delta], scale=scale, note=note)
    if half:
        pipeline.to(dtype=torch.float16)
    for component in (family_of(pipeline).denoiser, *TOWERS):
        model = getattr(pipeline, component, None)
        for name, value in model.named_parameters() if model is not None else ():
            if not value.isfinite().all():
                raise InputError(f"{component}.{name} does not fit into fp16.", hint="Leave out --precision fp16.")
    with quiet():
        pipeline.save_pretrained(folder, safe_serialization=True)
    if delta.gated:
        write_gates(folder, text_towers(pipeline)[0], delta.gated, scale=scale, half=half)


def lora_name(out: Path) -> str:
    """The name of an exported LoRA, which web UIs call it by: its output folder's, in safe letters."""
    (stem,) = file_stems([out.resolve().name]).values()
    return stem


def loading_hints(to: str, out: Path, tokens: Sequence[str], family: str = "") -> list[str]:
    """How the exported files are used: where they go, and what is typed in prompts. family: of a transformer."""
    words, row = spellings(tokens), family_by_name(family)
    if to == "diffusers-pipeline":
        sample = command_line("cdkit", "sample", "--base", out, "--prompt", "a photo", "--out", "samples")
        hints = [f"DiffusionPipeline.from_pretrained({str(out)!r}), or {sample}"]
        if (out / PIPELINE_CODE).exists():
            loaded = f"DiffusionPipeline.from_pretrained({str(out)!r}, trust_remote_code=True)"
            hints = [f"{loaded}; its {PIPELINE_CODE} puts the changes where the words stand"]
        if row and row.call:
            hints.append(f"call it with {row.call}: else diffusers may cut words in angle brackets out of prompts")
            return [*hints, *(f"type in prompts: {word.token}" for word in words)]
        return [*hints, *(f"type in prompts: {word.token}, whatever loads it" for word in words)]
    by_hand = "put the rows of embeddings/ into the text encoders by hand; --to diffusers-pipeline has that done"
    if to == "diffusers-lora":
        rows = by_hand if row else "pipe.load_textual_inversion for each embeddings file"
        hints = [
            f"pipe.load_lora_weights({str(out)!r})" + (f", and {rows}" if words else ""),
            f"diffusers needs peft to load it: {pip_install('peft')}",
        ]
        return [*hints, *(f"type in prompts: {word.token}" for word in words)]
    if row:
        return [by_hand, *(f"type in prompts: {word.token}" for word in words)]
    hints = [
        "pipe.load_textual_inversion, or the web UI's embeddings folder"
        if to == "textual-inversion"
        else f"copy loras/ and embeddings/ to the web UI's folders; prompt: <lora:{lora_name(out)}:1>"
    ]
    return [*hints, *(f"type in prompts: {word}" for word in words)]
