"""Base models: a diffusers pipeline from a folder, a hub id, or the one that ships with the package."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.config import did_you_mean
from cdkit.core.errors import ConfigError, InputError, NetworkError
from cdkit.core.startup import import_pipelines
from cdkit.deltas.pipeline_folder import MODEL_INDEX, is_pipeline_folder, load_folder, quiet
from cdkit.deltas.single_file import load_single_file

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

EMBEDDED = "embedded"
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


def cross_attention_names(unet: Any) -> list[str]:
    """The names of the U-Net's cross-attention key and value matrices, sorted: `….attn2.to_k.weight`, `…to_v…`."""
    ends = (".attn2.to_k.weight", ".attn2.to_v.weight")
    return sorted(name for name, _ in unet.named_parameters() if name.endswith(ends))


def base_hash(pipeline: DiffusionPipeline) -> str:
    """What tells base models apart: sha256 over the cross-attention keys' and values' weights, as fp32 bytes."""
    digest = hashlib.sha256()
    parameters = dict(pipeline.unet.named_parameters())
    for name in cross_attention_names(pipeline.unet):
        digest.update(name.encode())
        digest.update(parameters[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
