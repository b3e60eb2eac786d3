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
from cdkit.deltas.text_features import TOWERS, text_towers, tokenizer_name
from cdkit.deltas.weight_files import read_torch_outline

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

MODEL_INDEX, SCHEDULER_CONFIG = "model_index.json", "scheduler_config.json"
UNET, AUTOENCODER = "UNet2DConditionModel", "AutoencoderKL"
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
FAMILIES = "Stable Diffusion 1, 2 and XL pipelines: CLIP text encoder, U-Net, AutoencoderKL"
# What an index may call a pipeline whose parts draw pictures from text.
_PIPELINES = re.compile(r"StableDiffusion(XL)?(Img2Img|Inpaint)?Pipeline")
# Tokens that CLIP's text encoders see, start and end among them.
CONTEXT, SHORTEST = 77, 2
# A schedule is a table of so many numbers; Stable Diffusion's has 1,000.
MOST_TIMESTEPS = 100_000
MOST_LAYERS = 1000
PREDICTIONS = ("epsilon", "v_prediction")
_NEEDED = ("unet", "vae", "text_encoder")
_WHOLE = "Copy or download the model's whole folder again."
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<variant>\w+))?(?:-\d{5}-of-\d{5})?(?:\.(?P<late>\w+))?\.(?P<format>safetensors|bin)"
)
# CLIP's tokenizers, as either version of transformers saves them.
_TOKENIZER_FILES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})


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
    kind = index.get("_class_name")
    classes = {
        name: entry[1]
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
    }
    if not isinstance(kind, str) or not _PIPELINES.fullmatch(kind):
        shown_kind = kind[:80] if isinstance(kind, str) and kind.isprintable() else "no name"
        raise ConfigError(f"{base} is a pipeline of another kind ({shown_kind}).", hint=f"Base models are {FAMILIES}.")
    check_family(base, classes)
    for name in ("unet", "vae", *TOWERS):
        if name in classes:
            _check_depth(_part(folder, name) / "config.json")
    _check_scheduler(_part(folder, "scheduler") / SCHEDULER_CONFIG)
    for name in TOWERS:
        if name in classes:
            _check_tokenizer(_part(folder, tokenizer_name(name)))
    return classes


def check_family(base: str, classes: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a pipeline's parts are those of Stable Diffusion."""
    fits = (
        classes.get("unet") == UNET
        and classes.get("vae") == AUTOENCODER
        and classes.get("text_encoder") in TEXT_ENCODERS
        and classes.get("text_encoder_2") in (*TEXT_ENCODERS, None)
    )
    if not fits:
        named = [name for name in ("unet", "vae", "transformer", *TOWERS) if name in classes or name in _NEEDED]
        shown = ", ".join(f"{name} {classes.get(name, 'missing')}"[:80] for name in named)
        raise ConfigError(f"{base} is a model of another family ({shown}).", hint=f"Base models are {FAMILIES}.")


def load_folder(folder: Path, base: str, dtype: torch.dtype) -> DiffusionPipeline:
    """Load a text-to-image pipeline without safety checker.

    Raises InputError for what is missing, damaged or does not fit, ConfigError for another family.
    """
    import diffusers

    classes = read_classes(folder, base)
    kind = diffusers.StableDiffusionXLPipeline if "text_encoder_2" in classes else diffusers.StableDiffusionPipeline
    with library_errors(base), quiet():
        parts = {name: _load_part(folder / name, classes[name], dtype) for name in ("unet", "vae")}
        for name in TOWERS:
            if name in classes:
                parts[name] = _load_part(folder / name, classes[name], dtype)
                parts[tokenizer_name(name)] = read_tokenizer(folder / tokenizer_name(name))
        # Samples of one's own concepts are not censored into black squares; it would be 1.2 GB to load.
        absent = [name for name in ("feature_extractor", "image_encoder") if not (folder / name).is_dir()]
        taken, _ = kind._get_signature_keys(kind)
        parts |= {name: None for name in ("safety_checker", *absent) if name in taken}
        options = {"requires_safety_checker": False} if "safety_checker" in taken else {}
        pipeline: DiffusionPipeline = kind.from_pretrained(str(folder), **parts, **options)
    check_pipeline(pipeline, base)
    return pipeline


def read_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer from its folder, padding and context set where it does not know them.

    Raises InputError for one that is missing or damaged.
    """
    from transformers import CLIPTokenizer

    with library_errors(f"The tokenizer in {folder}"):
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        if not tokenizer.pad_token:
            tokenizer.pad_token = tokenizer.eos_token
        longest = tokenizer.model_max_length
        if not isinstance(longest, int) or not SHORTEST < longest <= CONTEXT:
            tokenizer.model_max_length = CONTEXT
        tokenizer("a word", padding="max_length", truncation=True)
    return tokenizer


def find_weights(folder: Path) -> PartWeights:
    """The weight files of a part: full precision before half, then safetensors before PyTorch's.

    Raises InputError when there are none, or one of them is no weight file.
    """
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _WEIGHTS.fullmatch(path.name):
            groups.setdefault((match["variant"] or match["late"] or "", match["format"]), []).append(path)
    if not groups:
        raise InputError(f"{folder} holds no weights.", hint=_WHOLE)
    variant, form = min(groups, key=lambda group: (bool(group[0]), group[0] != "fp16", group[1] != "safetensors"))
    files = groups[variant, form]
    for path in files:
        if form == "safetensors":
            read_tensor_header(path)
        else:
            read_torch_outline(path)
    return PartWeights(variant or None, form == "safetensors", tuple(files))


def _load_part(folder: Path, kind: str, dtype: torch.dtype) -> Any:
    import diffusers
    import transformers

    weights = find_weights(folder)
    options: dict[str, Any] = {"variant": weights.variant, "use_safetensors": weights.safetensors}
    if kind in TEXT_ENCODERS:
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
    ConfigError for a U-Net that takes more than latents.
    """
    check_channels(base, pipeline.unet.config, pipeline.vae.config)
    widths = pipeline.unet.config.cross_attention_dim
    takes = {widths} if isinstance(widths, int) else set(widths or ())
    gives = sum(tower.model.config.hidden_size for tower in text_towers(pipeline))
    if takes != {gives}:
        raise InputError(
            f"{base}: the text encoders give a width of {gives}, the U-Net takes {', '.join(map(str, takes))}.",
            hint="U-Net and text encoder must be of one model.",
        )
    for name, part in pipeline.components.items():
        empty = [key for key, value in part.named_parameters() if value.is_meta] if hasattr(part, "parameters") else []
        if empty:
            raise InputError(f"{base} lacks {len(empty)} weights of its {name}, the first {empty[0]}.", hint=_WHOLE)
    for tower in text_towers(pipeline):
        context = int(tower.model.config.max_position_embeddings)
        tower.tokenizer.model_max_length = min(tower.tokenizer.model_max_length, context)
        rows = len(tower.model.get_input_embeddings().weight)
        last = max(tower.tokenizer.get_vocab().values(), default=0)
        if not 2 <= last < rows:
            raise InputError(
                f"{base}: the tokenizer's last entry is {last}, the {tower.name} has {rows} embeddings.",
                hint="Tokenizer and text encoder must be of one model.",
            )


def check_channels(base: str, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raise ConfigError for a U-Net that takes more than the autoencoder's latents, by the parts' configurations."""
    if unet.get("in_channels") != vae.get("latent_channels"):
        raise ConfigError(
            f"The U-Net of {base} takes {unet.get('in_channels')} channels and its latents have "
            f"{vae.get('latent_channels')}: it is an inpainting or image-editing model.",
            hint="Give the text-to-image model it was made from.",
        )


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


def _check_depth(path: Path) -> None:
    """Raise InputError for a part of more layers than a library would ever finish building."""
    for name, value in _mapping(path).items():
        stated = [value] if not isinstance(value, list) else [layer for layer in value if not isinstance(layer, list)]
        if "layers" in name and any(isinstance(number, int | float) and number > MOST_LAYERS for number in stated):
            raise InputError(f"{path}: {name} is {str(value)[:40]}.", hint=_WHOLE)


def _check_scheduler(path: Path) -> None:
    """Raise InputError for a noise schedule that no sampler or training can follow."""
    config = _mapping(path)
    steps, kind = config.get("num_train_timesteps", 1000), config.get("prediction_type", "epsilon")
    if not isinstance(steps, int) or not 1 <= steps <= MOST_TIMESTEPS:
        raise InputError(f"{path} has {str(steps)[:40]} training steps.", hint=_WHOLE)
    if kind not in PREDICTIONS:
        raise ConfigError(
            f"{path}: the model predicts {str(kind)[:40]!r}.", hint=f"cdkit knows {', '.join(PREDICTIONS)}."
        )


def _check_tokenizer(folder: Path) -> None:
    present = {path.name for path in folder.iterdir()}
    if not any(needed <= present for needed in _TOKENIZER_FILES):
        raise InputError(
            f"{folder} holds no tokenizer: neither tokenizer.json nor vocab.json with merges.txt.", hint=_WHOLE
        )
