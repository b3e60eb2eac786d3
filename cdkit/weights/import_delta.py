"""The delta-import stage: other tools' files into one delta file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.config import StageConfig, setting
from cdkit.datasets import Dataset
from cdkit.devices import choose_device
from cdkit.errors import ConfigError, InputError
from cdkit.inputs import Input
from cdkit.manifest import Counts
from cdkit.protocols import Context
from cdkit.shell import command_line
from cdkit.storage import Folder
from cdkit.weights.apply import check_fit
from cdkit.weights.base_model import base_hash, load_base_model
from cdkit.weights.delta import DELTA_NAME, Delta, LowRank, ModifierToken, check_changes, norm, save_delta
from cdkit.weights.exporters.names import SDXL_WIDTH, kohya_module, module_of, underscored
from cdkit.weights.importers.found import Found
from cdkit.weights.importers.reading import shown
from cdkit.weights.importers.recognition import read_foreign
from cdkit.weights.importers.textual_inversion import stored_prompts

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
# Where cdkit's own exports and the web UIs keep files, beside the folder itself.
_SUBFOLDERS = ("", "loras", "embeddings")
# A fine-tuning moves keys and values by a few per cent; another base model's differ by more than this.
SUSPICIOUS = 0.5


class ImportDeltaConfig(StageConfig):
    """Which files to import, and what they do not say themselves."""

    files: list[str] = setting(
        help="Weight and embedding files of one model, or their folder.", argument=True, input="folder", min_length=1
    )
    base: str | None = setting(None, "Base model they were trained on; files of whole weights need it.", input="model")
    tokens: list[str] = setting([], "Names for the modifier tokens, in the file's order.", flag="--token")
    category: str | None = setting(None, "What the concept is, e.g. dog: makes the prompt that merging goes by.")
    prompts: list[str] = setting([], "A prompt it was trained with. Repeatable.", flag="--prompt")


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
