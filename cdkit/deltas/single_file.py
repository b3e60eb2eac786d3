"""A base model as one file, as CompVis and Stability AI saved them and model sites give them away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.file_kinds import check_weight_file, is_safetensors
from cdkit.core.shards import read_tensor_header
from cdkit.deltas.delta import DELTA_FORMATS
from cdkit.deltas.formats import adobe as custom_diffusion
from cdkit.deltas.formats.lora import lora_kind
from cdkit.deltas.formats.reading import shown
from cdkit.deltas.pipeline_folder import FAMILIES, MODEL_INDEX, check_pipeline, library_errors, quiet
from cdkit.deltas.torch_file import read_torch_outline

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

UNET_KEY = "model.diffusion_model."
_PART_KEYS = ("down_blocks.", "encoder.down_blocks.", "text_model.", "conv_in.")


@dataclass(frozen=True)
class Family:
    """One family of checkpoints: how its text encoder's weights start, whose settings its models have."""

    name: str
    text_key: str
    settings: str
    pipeline: str


FAMILIES_OF_FILES = (
    Family(
        "Stable Diffusion XL",
        "conditioner.embedders.1.",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "StableDiffusionXLPipeline",
    ),
    Family(
        "Stable Diffusion 2", "cond_stage_model.model.", "stabilityai/stable-diffusion-2-1", "StableDiffusionPipeline"
    ),
    Family(
        "Stable Diffusion 1",
        "cond_stage_model.transformer.",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "StableDiffusionPipeline",
    ),
)


def load_single_file(path: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """Load a checkpoint with the settings and tokenizer that its family has in the hub's cache; nothing is fetched.

    Raises InputError for a file that is damaged or something else, or when its family's settings are not on this
    machine; ConfigError for a model of another family.
    """
    import diffusers

    family = _family(path)
    settings = _cached_settings(family)
    if settings is None:
        fetch = f"hf download {family.settings} --include '*.json' --include '*.txt'"
        raise InputError(
            f"{path} is one file with a whole {family.name} model. Its settings and tokenizer, which are those of "
            f"{family.settings}, are not on this machine.",
            hint=f"Fetch them once, without weights: {fetch}. Or give a pipeline's folder.",
        )
    kind = getattr(diffusers, family.pipeline)
    options: dict[str, Any] = {} if family.pipeline.endswith("XLPipeline") else {"safety_checker": None}
    with library_errors(str(path)), quiet():
        pipeline: DiffusionPipeline = kind.from_single_file(
            str(path), config=str(settings), local_files_only=True, torch_dtype=dtype, **options
        )
    check_pipeline(pipeline, str(path))
    return pipeline


def _family(path: Path) -> Family:
    """The family of a checkpoint, by the names of its tensors; raises an error that says what the file is instead."""
    header: Mapping[str, str] = {}
    names: Mapping[str, Any]
    if is_safetensors(check_weight_file(path)):
        header, names = read_tensor_header(path)
    else:
        names = _state(read_torch_outline(path), path)
    if header.get("format", "").startswith(DELTA_FORMATS):
        raise ConfigError(f"{path} is a delta, not a base model.", hint="Give it as the delta, and its base model.")
    for family in FAMILIES_OF_FILES:
        starts = (UNET_KEY, family.text_key)
        if all(any(name.startswith(start) for name in names) for start in starts):
            return family
    raise InputError(f"{path} {_impression(names)}.", hint=f"Base models are {FAMILIES}.")


def _state(values: Any, path: Path) -> Mapping[str, Any]:
    state = values.get("state_dict", values) if isinstance(values, dict) else values
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{path} holds no named tensors.", hint="It is no weight file.")
    return state


def _impression(names: Mapping[str, Any]) -> str:
    kind = lora_kind(names)
    if kind is not None:
        return f"is a LoRA ({kind}), not a base model; cdkit delta import makes a delta of it"
    if any(custom_diffusion.MARK in name for name in names):
        return "holds Custom Diffusion weights, not a base model; cdkit delta import makes a delta of them"
    if any(name.startswith(UNET_KEY) for name in names):
        return "holds a U-Net without a text encoder of Stable Diffusion: a model of another family, or a part of one"
    if any(name.startswith(_PART_KEYS) for name in names):
        return "is one part of a model; give the folder that holds all of its parts"
    held = ", ".join(shown(name) for name in list(names)[:3]) or "nothing"
    return f"is no checkpoint of Stable Diffusion: it holds {held}"


def _cached_settings(family: Family) -> Path | None:
    """The family's configuration files in the hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(family.settings, local_files_only=True))
    except Exception:  # the hub's errors, a damaged cache: in either case there are none
        return None
    return folder if (folder / MODEL_INDEX).is_file() else None
