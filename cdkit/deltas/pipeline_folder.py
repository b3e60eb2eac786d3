"""A base model as diffusers saves it: a folder with an index and one folder for each part, looked at before it is
loaded, so that what is missing or damaged is named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import CdkitError, ConfigError, InputError
from cdkit.core.shards import read_tensor_header
from cdkit.core.storage import read_json
from cdkit.deltas.families.family import Family
from cdkit.deltas.families.stable_diffusion import CLIP_ENCODERS
from cdkit.deltas.families.table import (
    denoiser_of,
    family_named,
    family_names,
    family_of,
    family_of_parts,
    misfits,
)
from cdkit.deltas.text_features import TOWERS, text_towers, tokenizer_name
from cdkit.deltas.weight_files import read_torch_outline

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

MODEL_INDEX, SCHEDULER_CONFIG = "model_index.json", "scheduler_config.json"
# Tokens that a text encoder sees at the least, start and end among them.
SHORTEST = 2
# A schedule is a table of so many numbers; Stable Diffusion's has 1,000.
MOST_TIMESTEPS = 100_000
MOST_LAYERS = 1000
# How the types of values that stand for full numbers begin in safetensors.
QUANTISED = ("F8", "F6", "F4", "I8", "I4", "U8", "U4")
PREDICTIONS = ("epsilon", "v_prediction")
_WHOLE = "Copy or download the model's whole folder again."
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<variant>\w+))?(?:-\d{5}-of-\d{5})?(?:\.(?P<late>\w+))?\.(?P<format>safetensors|bin)"
)
# Tokenizers, as the versions of transformers save them; CLIP's are one of the first two.
_TOKENIZER_FILES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"}, {"tokenizer.model"})


@dataclass(frozen=True)
class PartWeights:
    """Which of a part's weight files are read: `variant` is what stands in their names, such as fp16."""

    variant: str | None
    safetensors: bool
    files: tuple[Path, ...]


def is_pipeline_folder(folder: Path) -> bool:
    """Whether a folder has the index of a diffusers pipeline."""
    return (folder / MODEL_INDEX).is_file()


def read_classes(folder: Path, base: str) -> dict[str, str]:
    """The class of each of the pipeline's parts by name, from its index.

    Raises InputError when the index or a part's folder or configuration is missing or damaged, ConfigError for a
    pipeline of another family.
    """
    index = _mapping(folder / MODEL_INDEX)
    classes = {
        name: entry[1]
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
    }
    if isinstance(index.get("_class_name"), list):
        raise ConfigError(
            f"{base} draws with code of its own (pipeline.py), which is never run here.",
            hint="A folder that cdkit export made of a gated delta: give the base model, and the delta with --delta.",
        )
    family = family_named(str(index.get("_class_name", "")), base)
    check_family(base, family, classes)
    for name in (family.denoiser, "vae", *TOWERS):
        if name in classes:
            _check_part(_part(folder, name) / "config.json")
    _check_scheduler(_part(folder, "scheduler") / SCHEDULER_CONFIG, family)
    for name in TOWERS:
        if name in classes:
            _check_tokenizer(_part(folder, tokenizer_name(name)))
    return classes


def check_family(base: str, family: Family, classes: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a pipeline's parts are those of its family."""
    wrong = misfits(family, classes)
    if wrong:
        raise ConfigError(
            f"{base} is a model of another family ({', '.join(wrong)}).", hint=f"Base models are {family_names()}."
        )


def load_folder(folder: Path, base: str, dtype: torch.dtype) -> DiffusionPipeline:
    """Load a text-to-image pipeline without safety checker.

    Raises InputError for what is missing, damaged or does not fit, ConfigError for another family.
    """
    import diffusers

    classes = read_classes(folder, base)
    family = family_of_parts(classes, base)
    kind = getattr(diffusers, family.pipeline)
    with library_errors(base), quiet():
        parts = {name: _load_part(folder / name, classes[name], dtype) for name in (family.denoiser, "vae")}
        for name in family.texts:
            if name in classes:
                parts[name] = _load_part(folder / name, classes[name], dtype)
                parts[tokenizer_name(name)] = read_tokenizer(folder / tokenizer_name(name), family, name)
            else:
                parts |= {name: None, tokenizer_name(name): None}
        # Samples of one's own concepts are not censored into black squares; it would be 1.2 GB to load.
        absent = [name for name in ("feature_extractor", "image_encoder") if not (folder / name).is_dir()]
        taken, _ = kind._get_signature_keys(kind)
        parts |= {name: None for name in ("safety_checker", *absent) if name in taken}
        options = {"requires_safety_checker": False} if "safety_checker" in taken else {}
        pipeline: DiffusionPipeline = kind.from_pretrained(str(folder), **parts, **options)
    check_pipeline(pipeline, base)
    return pipeline


def read_tokenizer(folder: Path, family: Family, tower: str) -> Any:
    """A text encoder's tokenizer from its folder, padding and context set where it does not know them.

    Raises InputError for one that is missing or damaged.
    """
    from transformers import AutoTokenizer, CLIPTokenizer

    reader: Any = CLIPTokenizer if set(family.texts[tower]) <= set(CLIP_ENCODERS) else AutoTokenizer
    with library_errors(f"The tokenizer in {folder}"):
        tokenizer = reader.from_pretrained(str(folder), local_files_only=True)
        if not tokenizer.pad_token:
            tokenizer.pad_token = tokenizer.eos_token
        longest, context = tokenizer.model_max_length, family.context[tower]
        if not isinstance(longest, int) or not SHORTEST < longest <= context or reader is AutoTokenizer:
            tokenizer.model_max_length = context
        tokenizer("a word", padding="max_length", truncation=True)
    return tokenizer


def weight_files(folder: Path) -> PartWeights:
    """The weight files of a part: full precision before half, then safetensors before PyTorch's.

    None of them is opened. Raises InputError when there are none.
    """
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _WEIGHTS.fullmatch(path.name):
            groups.setdefault((match["variant"] or match["late"] or "", match["format"]), []).append(path)
    if not groups:
        raise InputError(f"{folder} holds no weights.", hint=_WHOLE)
    variant, form = min(groups, key=lambda group: (bool(group[0]), group[0] != "fp16", group[1] != "safetensors"))
    return PartWeights(variant or None, form == "safetensors", tuple(groups[variant, form]))


def _check_types(path: Path) -> None:
    """Raise InputError for a damaged safetensors file, ConfigError for one with values of 8 bits or fewer."""
    from safetensors import safe_open

    read_tensor_header(path)
    with library_errors(str(path)), safe_open(str(path), "pt") as file:
        types = {str(part.get_dtype()) for part in map(file.get_slice, file.keys())}
    if small := sorted(kind for kind in types if kind.startswith(QUANTISED)):
        raise _quantised(path, small[0])


def _quantised(where: Path, kind: str) -> ConfigError:
    return ConfigError(
        f"{where} is quantised ({kind}): what trains and what a merge solves for are full numbers.",
        hint="Give the model's folder in bf16, fp16 or fp32; --precision bf16 and --fit make it small.",
    )


def _load_part(folder: Path, kind: str, dtype: torch.dtype) -> Any:
    import diffusers
    import transformers

    weights = weight_files(folder)
    for path in weights.files:
        (_check_types if weights.safetensors else read_torch_outline)(path)
    options: dict[str, Any] = {"variant": weights.variant, "use_safetensors": weights.safetensors}
    if not hasattr(diffusers, kind):
        # Asked to pass over what does not fit, transformers says which that is, and otherwise only that there is some.
        options |= {"dtype": dtype, "ignore_mismatched_sizes": True}
        library: Any = transformers
    else:
        options["torch_dtype"] = dtype
        library = diffusers
    with library_errors(str(folder)):
        model, report = getattr(library, kind).from_pretrained(str(folder), output_loading_info=True, **options)
    wrong = [f"{name} is {tuple(here)}, not {tuple(wanted)}" for name, here, wanted in report["mismatched_keys"]]
    missing = sorted(report["missing_keys"])
    if wrong or missing:
        what = f"weights of other shapes: {wrong[0]}" if wrong else f"not all weights: {missing[0]} is missing"
        more = len(wrong or missing) - 1
        raise InputError(
            f"{folder} holds {what}{f' and {more} more' if more else ''}.",
            hint="config.json and weights must be of one model.",
        )
    return model


def check_pipeline(pipeline: DiffusionPipeline, base: str) -> None:
    """Hold tokenizers to their text encoders' context.

    Raises InputError for one with other entries than the text encoder has embeddings, and for parts without weights;
    ConfigError for a denoiser that takes more than latents.
    """
    family, towers = family_of(pipeline), text_towers(pipeline)
    denoiser = denoiser_of(pipeline)
    check_channels(base, family, denoiser.config, pipeline.vae.config)
    takes, gives = family.taken_widths(denoiser.config), family.given_width(towers)
    if gives is not None and takes != {gives}:
        raise InputError(
            f"{base}: the text encoders give a width of {gives}, the {part_name(family)} takes "
            f"{', '.join(map(str, takes))}.",
            hint=f"{part_name(family)} and text encoder must be of one model.",
        )
    for name, part in pipeline.components.items():
        empty = [key for key, value in part.named_parameters() if value.is_meta] if hasattr(part, "parameters") else []
        if empty:
            raise InputError(f"{base} lacks {len(empty)} weights of its {name}, the first {empty[0]}.", hint=_WHOLE)
    for tower in towers:
        context = getattr(tower.model.config, "max_position_embeddings", None)
        if isinstance(context, int):
            tower.tokenizer.model_max_length = min(tower.tokenizer.model_max_length, context)
        rows = len(tower.model.get_input_embeddings().weight)
        last = max(tower.tokenizer.get_vocab().values(), default=0)
        if not 2 <= last < rows:
            raise InputError(
                f"{base}: the tokenizer's last entry is {last}, the {tower.name} has {rows} embeddings.",
                hint="Tokenizer and text encoder must be of one model.",
            )


def check_channels(base: str, family: Family, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raise ConfigError for a denoiser that takes more than the autoencoder's latents, by their configurations."""
    takes, gives = family.taken_channels(denoiser), family.latent_channels(vae)
    if takes != gives:
        raise ConfigError(
            f"The {part_name(family)} of {base} takes {takes} channels and its latents have {gives}: it is an "
            "inpainting or image-editing model.",
            hint="Give the text-to-image model it was made from.",
        )


def part_name(family: Family) -> str:
    """How people call the part that trains."""
    return "U-Net" if family.denoiser == "unet" else "transformer"


@contextmanager
def library_errors(what: str, done: str = "loaded", passed: Sequence[Exception] = ()) -> Iterator[None]:
    """Turn whatever a library raises over a damaged model into an InputError; too little memory stays what it is.

    done: what cannot be done with it. passed: errors that are not the library's.
    """
    import torch

    try:
        yield
    except (CdkitError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "allocate memory" in str(error) or error in passed:
            raise
        # What follows is advice on arguments of the library's own.
        reason = " ".join(str(error).split()).partition(" If you want to instead")[0][:500] or type(error).__name__
        raise InputError(f"{what} cannot be {done}: {reason}", hint=_WHOLE) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' bars and reports: what matters of them is checked here."""
    import warnings

    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def _part(folder: Path, name: str) -> Path:
    if not (folder / name).is_dir():
        raise InputError(f"{folder} has no {name}/ folder.", hint=_WHOLE)
    return folder / name


def _mapping(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} is no configuration: it holds no names with values.", hint=_WHOLE)
    return values


def _check_part(path: Path) -> None:
    """Raise for a part of more layers than a library would ever finish building, and for one that is quantised."""
    values = _mapping(path)
    for name, value in values.items():
        stated = [value] if not isinstance(value, list) else [layer for layer in value if not isinstance(layer, list)]
        if "layers" in name and any(isinstance(number, int | float) and number > MOST_LAYERS for number in stated):
            raise InputError(f"{path}: {name} is {str(value)[:40]}.", hint=_WHOLE)
    quantised = values.get("quantization_config")
    if quantised:
        kind = quantised.get("quant_type") or quantised.get("quant_method") if isinstance(quantised, dict) else ""
        raise _quantised(path.parent, str(kind or quantised)[:40])


def _check_scheduler(path: Path, family: Family) -> None:
    """Raise InputError for a noise schedule that no sampler or training can follow."""
    config = _mapping(path)
    steps, kind = config.get("num_train_timesteps", 1000), config.get("prediction_type", "epsilon")
    if not isinstance(steps, int) or not 1 <= steps <= MOST_TIMESTEPS:
        raise InputError(f"{path} has {str(steps)[:40]} training steps.", hint=_WHOLE)
    if kind not in PREDICTIONS and not family.flow:
        raise ConfigError(
            f"{path}: the model predicts {str(kind)[:40]!r}.", hint=f"cdkit knows {', '.join(PREDICTIONS)}."
        )


def _check_tokenizer(folder: Path) -> None:
    present = {path.name for path in folder.iterdir()}
    if not any(needed <= present for needed in _TOKENIZER_FILES):
        raise InputError(
            f"{folder} holds no tokenizer: neither tokenizer.json nor vocab.json with merges.txt.", hint=_WHOLE
        )
