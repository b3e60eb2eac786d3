"""Other tools' files as a delta: which tool a file comes from, which matrices of the base it changes, its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.protocols import Context
from cdkit.deltas.base_model import base_hash
from cdkit.deltas.config import ImportDeltaConfig
from cdkit.deltas.delta import DELTA_FORMAT, Delta, ModifierToken, check_changes
from cdkit.deltas.families.table import denoiser_of, family_of
from cdkit.deltas.formats import adobe, lora, textual_inversion
from cdkit.deltas.formats.lora import SDXL_WIDTH, kohya_module, module_of, underscored
from cdkit.deltas.formats.textual_inversion import stored_prompts
from cdkit.deltas.low_rank import LowRank, norm
from cdkit.deltas.weight_files import Contents, ForeignFile, read_contents, shown

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
# Where cdkit's own exports and the web UIs keep files, beside the folder itself.
_SUBFOLDERS = ("", "loras", "embeddings")
# A fine-tuning moves keys and values by a few per cent; another base model's differ by more than this.
SUSPICIOUS = 0.5


def gather_files(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the weight files of the folders named; of one name the safetensors file is taken."""
    gathered: list[Path] = []
    for path in paths:
        if not path.is_dir():
            gathered.append(path)
            continue
        files = [file for sub in _SUBFOLDERS for file in sorted((path / sub).glob("*")) if file.suffix in SUFFIXES]
        safe = {(file.parent, file.stem) for file in files if file.suffix == ".safetensors"}
        gathered += [file for file in files if file.suffix == ".safetensors" or (file.parent, file.stem) not in safe]
        if not files:
            raise InputError(f"{path} holds no weight files.", hint=f"They end in {', '.join(SUFFIXES)}.")
    return gathered


def imported_changes(source: ForeignFile, pipeline: DiffusionPipeline | None) -> dict[str, torch.Tensor | LowRank]:
    """Differences from the base by its parameter names; raises ConfigError for what the base does not have."""
    changes: dict[str, torch.Tensor | LowRank] = dict(source.changes)
    parameters = dict(denoiser_of(pipeline).named_parameters()) if pipeline is not None else {}
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
    names = {}
    for name in parameters:
        module, kind = module_of(name)
        names[kohya_module(module, SDXL_WIDTH), kind] = name
        names[underscored(module), kind] = name
    return names


def note_size(
    source: ForeignFile, changes: Mapping[str, torch.Tensor | LowRank], pipeline: DiffusionPipeline, context: Context
) -> None:
    """Say so when a change is larger than a fine-tuning makes."""
    parameters = dict(denoiser_of(pipeline).named_parameters())
    ratios = [
        norm(change) / max(float(parameters[name].detach().float().norm()), 1e-12) for name, change in changes.items()
    ]
    if ratios and max(ratios) > SUSPICIOUS:
        context.progress.note(
            f"{source.path.name} moves a matrix by {max(ratios):.0%} of its norm: was it trained on this base model?"
        )


def imported_tokens(files: Sequence[ForeignFile], names: Sequence[str]) -> list[ModifierToken]:
    """The tokens of all files, by `names` where there are any; raises ConfigError for another number, or doubles."""
    tokens = [token for file in files for token in file.tokens]
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


def stated(header: Mapping[str, str], name: str) -> str:
    """What a file says of itself in one line; empty when it does not, or not in one."""
    text = header.get(name, "")
    return text if text.isprintable() else ""


def imported_delta(
    config: ImportDeltaConfig,
    source: ForeignFile,
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
        method=stated(source.header, "cdkit_method") or source.kind,
        base=config.base or stated(source.header, "cdkit_base"),
        part=family_of(pipeline).denoiser if pipeline is not None else source.part,
        base_hash=base_hash(pipeline) if pipeline is not None else stated(source.header, "cdkit_base_hash"),
        changes=dict(changes),
        tokens=tuple(tokens),
        prompts=tuple(prompts),
        settings=settings,
    )


def read_foreign(path: Path) -> ForeignFile:
    """Read one file of any known kind; raises InputError that names what it is when it is of no use here."""
    contents = read_contents(path)
    values = contents.values
    if contents.header.get("format") == DELTA_FORMAT:
        raise ConfigError(f"{path} is a cdkit delta already.", hint="Use it as it is.")
    if isinstance(values.get("state_dict"), dict):
        return adobe.read_compvis(contents)
    if isinstance(values.get("unet"), dict):
        return adobe.read_diffusers(contents)
    if any(adobe.MARK in key for key in values):
        return adobe.read_processors(contents)
    kind = lora.lora_kind(values)
    if kind is not None:
        return lora.read_lora(contents, kind)
    if textual_inversion.is_embedding(contents):
        return textual_inversion.read_embedding(contents)
    raise InputError(
        f"{path} {_impression(contents)}.", hint="See cdkit delta import --help for what can be imported."
    )


def _impression(contents: Contents) -> str:
    keys = list(contents.values)
    if any(key.startswith(("first_stage_model.", "cond_stage_model.", "conditioner.")) for key in keys):
        return "is a whole Stable Diffusion checkpoint, not a delta"
    if any(key.startswith(("down_blocks.", "encoder.down_blocks.", "text_model.")) for key in keys):
        return "is a whole model, not a delta"
    return f"is of no known kind: it holds {', '.join(map(shown, keys[:3])) or 'nothing'}"
