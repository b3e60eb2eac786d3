"""Base models: a pipeline from a folder, a hub id, one checkpoint file, or the package; the sides it draws at."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.config import did_you_mean
from cdkit.core.errors import ConfigError, InputError, NetworkError
from cdkit.core.file_kinds import check_weight_file, is_safetensors
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.shards import read_tensor_header
from cdkit.core.startup import import_pipelines
from cdkit.deltas.delta import DELTA_FORMATS
from cdkit.deltas.families.table import denoiser_of, family_of, family_of_denoiser
from cdkit.deltas.formats import adobe
from cdkit.deltas.formats.lora import lora_kind
from cdkit.deltas.pipeline_folder import (
    MODEL_INDEX,
    check_pipeline,
    is_pipeline_folder,
    library_errors,
    load_folder,
    quiet,
)
from cdkit.deltas.weight_files import read_torch_outline, shown

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

PRECISIONS = ("no", "bf16", "fp16")


def compute_type(precision: str) -> torch.dtype:
    """The torch type of `no`, `bf16` or `fp16`."""
    import torch

    return {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def load_base_model(base: str, *, device: torch.device, precision: str = "no") -> DiffusionPipeline:
    """Load a Stable Diffusion pipeline without its safety checker, in eval mode, progress bars off.

    base: `embedded`, a diffusers folder, a checkpoint file, or a hub id. Raises InputError for a folder or file that
    is no model or is damaged, NetworkError when the hub cannot be reached, ConfigError for something that is none of
    these, or a model of another family.
    """
    import_pipelines()
    dtype = compute_type(precision)
    if base == EMBEDDED:
        from cdkit.embedded import load_pipeline

        pipeline = load_pipeline()
    else:
        pipeline = _load_diffusers(base, dtype)
    pipeline.set_progress_bar_config(disable=True)
    # Casting fp32 to fp32 does nothing but make diffusers warn.
    return pipeline.to(device) if precision == "no" else pipeline.to(device=device, dtype=dtype)


def _load_diffusers(base: str, dtype: torch.dtype) -> DiffusionPipeline:
    path = Path(base).expanduser()
    if path.is_dir():
        if not is_pipeline_folder(path):
            raise InputError(
                f"{base} is not a diffusers pipeline: it has no model_index.json.",
                hint="Give the folder that save_pretrained wrote, or convert a checkpoint with diffusers first.",
            )
        return load_folder(path, base, dtype)
    if path.exists():
        return load_single_file(path, dtype)
    if base.startswith((".", "/", "~")) or base.count("/") != 1:
        raise ConfigError(
            f"There is no base model {base!r}{did_you_mean(base, [EMBEDDED])}.",
            hint="Give 'embedded', a diffusers pipeline folder, a checkpoint file, or a hub id such as owner/name.",
        )
    return load_folder(_fetched(base), base, dtype)


def _fetched(base: str) -> Path:
    """A hub model's folder in the cache, fetched there when the hub can be reached and it is not."""
    from diffusers import DiffusionPipeline

    try:
        with quiet():
            return Path(DiffusionPipeline.download(base, safety_checker=None))
    except Exception as error:  # the hub's, the connection's and the file system's errors alike
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise NetworkError(
            f"The base model {base!r} cannot be had from the hub: {reason}",
            hint="Check the name and the connection, or give a local folder.",
        ) from error


def in_hub_cache(base: str) -> bool:
    """Whether a text is the id of a hub model that is on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(base, MODEL_INDEX), str)
    except (HFValidationError, ValueError, OSError):
        return False


def cross_attention_names(denoiser: Any) -> list[str]:
    """The names of the key and value matrices that read text, sorted: a U-Net's `….attn2.to_k.weight`, `…to_v…`."""
    pattern = re.compile(family_of_denoiser(denoiser).keys_and_values)
    return sorted(name for name, _ in denoiser.named_parameters() if pattern.search(name))


def base_hash(pipeline: DiffusionPipeline) -> str:
    """What tells base models apart: sha256 over the weights of the keys and values that read text, as fp32 bytes."""
    digest = hashlib.sha256()
    denoiser = denoiser_of(pipeline)
    parameters = dict(denoiser.named_parameters())
    for name in cross_attention_names(denoiser):
        digest.update(name.encode())
        digest.update(parameters[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# base_hash of earlier editions of the embedded model, and what to call them.
EARLIER_EDITIONS = {"52f8d3ace9c0e433bcb889dbecde525b0fe64f4c31f51d39e1d17e404a7f0a58": "first"}


def refuse_earlier_edition(name: str, made_on: str) -> None:
    """Raises ConfigError for a delta made on an earlier edition of the embedded model; its base has other weights."""
    if made_on in EARLIER_EDITIONS:
        raise ConfigError(
            f"{name} was made on the {EARLIER_EDITIONS[made_on]} edition of the embedded model, which this version of "
            "cdkit no longer has.",
            hint="Train its concept again: that takes less than a minute.",
        )


UNET_KEY = "model.diffusion_model."
_PART_KEYS = ("down_blocks.", "encoder.down_blocks.", "text_model.", "conv_in.")


@dataclass(frozen=True)
class FileFamily:
    """One family of checkpoints: how its text encoder's weights start, whose settings its models have.

    Files come from CompVis, Stability AI, and sites that give models away.
    """

    name: str
    text_key: str
    settings: str


FAMILIES_OF_FILES = (
    FileFamily("Stable Diffusion XL", "conditioner.embedders.1.", "stabilityai/stable-diffusion-xl-base-1.0"),
    FileFamily("Stable Diffusion 2", "cond_stage_model.model.", "stabilityai/stable-diffusion-2-1"),
    FileFamily("Stable Diffusion 1", "cond_stage_model.transformer.", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
)


def load_single_file(path: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """Load a checkpoint with the settings and tokenizer that its family has in the hub's cache; nothing is fetched.

    Raises InputError for a file that is damaged or something else, or when its family's settings are not on this
    machine; ConfigError for a model of another family.
    """
    import diffusers

    family = file_family(path)
    settings = _cached_settings(family)
    if settings is None:
        fetch = f"hf download {family.settings} --include '*.json' --include '*.txt'"
        raise InputError(
            f"{path} is one file with a whole {family.name} model. Its settings and tokenizer, which are those of "
            f"{family.settings}, are not on this machine.",
            hint=f"Fetch them once, without weights: {fetch}. Or give a pipeline's folder.",
        )
    is_xl = family.name.endswith("XL")
    kind = diffusers.StableDiffusionXLPipeline if is_xl else diffusers.StableDiffusionPipeline
    options: dict[str, Any] = {} if is_xl else {"safety_checker": None}
    with library_errors(str(path)), quiet():
        pipeline: DiffusionPipeline = kind.from_single_file(
            str(path), config=str(settings), local_files_only=True, torch_dtype=dtype, **options
        )
    check_pipeline(pipeline, str(path))
    return pipeline


def file_family(path: Path) -> FileFamily:
    """The family of a checkpoint, by the names of its tensors; raises an error that says what the file is instead."""
    header: Mapping[str, str] = {}
    names: Mapping[str, Any]
    if is_safetensors(check_weight_file(path)):
        header, names = read_tensor_header(path)
    else:
        values = read_torch_outline(path)
        names = values.get("state_dict", values) if isinstance(values, dict) else values
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{path} holds no named tensors.", hint="It is no weight file.")
    if header.get("format", "").startswith(DELTA_FORMATS):
        raise ConfigError(f"{path} is a delta, not a base model.", hint="Give it as the delta, and its base model.")
    for family in FAMILIES_OF_FILES:
        starts = (UNET_KEY, family.text_key)
        if all(any(name.startswith(start) for name in names) for start in starts):
            return family
    single = ", ".join(family.name for family in FAMILIES_OF_FILES)
    raise InputError(f"{path} {_impression(names)}.", hint=f"Single files of {single} can be base models.")


def _impression(names: Mapping[str, Any]) -> str:
    kind = lora_kind(names)
    if kind is not None:
        return f"is a LoRA ({kind}), not a base model; cdkit delta import makes a delta of it"
    if any(adobe.MARK in name for name in names):
        return "holds Custom Diffusion weights, not a base model; cdkit delta import makes a delta of them"
    if any(name.startswith(UNET_KEY) for name in names):
        return "holds a U-Net without a text encoder of Stable Diffusion: a model of another family, or a part of one"
    if any(name.startswith(_PART_KEYS) for name in names):
        return "is one part of a model; give the folder that holds all of its parts"
    held = ", ".join(shown(name) for name in list(names)[:3]) or "nothing"
    return f"is no checkpoint of Stable Diffusion: it holds {held}"


def _cached_settings(family: FileFamily) -> Path | None:
    """The family's configuration files in the hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(family.settings, local_files_only=True))
    except Exception:  # the hub's errors, a damaged cache: in either case there are none
        return None
    return folder if (folder / MODEL_INDEX).is_file() else None


def checked_resolution(asked: int | None, own: int, step: int) -> int:
    """The side to draw or train at: `asked`, or the model's own.

    step: what its pipeline's sides are multiples of. Raises ConfigError for a side that the pipeline does not take.
    """
    side = own if asked is None else asked
    if side % step:
        raise ConfigError(
            f"The resolution {side} is no multiple of {step}, which this model's pictures must be.",
            hint=f"Use {max(1, round(side / step)) * step}; {own} is the model's own.",
        )
    return side


def pipeline_resolution(pipeline: DiffusionPipeline, asked: int | None) -> int:
    """`checked_resolution` of a loaded pipeline."""
    family, vae = family_of(pipeline), pipeline.vae.config
    own = family.own_cells(denoiser_of(pipeline).config) * family.factor(vae)
    return checked_resolution(asked, own, family.step(vae))
