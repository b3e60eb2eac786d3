"""A pipeline as one checkpoint file under CompVis' names, and a hub cache that holds a family's settings."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cdkit.deltas.formats.lora import original_module

_VAE: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.conv", r"down.\1.downsample.conv"),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda found: f"up.{1 - int(found[1])}.block.{found[2]}"),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.conv", lambda found: f"up.{1 - int(found[1])}.upsample.conv"),
    (r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def single_file_state(pipeline: Any) -> dict[str, torch.Tensor]:
    """The pipeline's weights under the names of Stable Diffusion 1: two autoencoder blocks, two layers in each."""
    state: dict[str, torch.Tensor] = {}
    for name, value in pipeline.unet.state_dict().items():
        module, _, kind = name.rpartition(".")
        state[f"model.diffusion_model.{original_module(module)}.{kind}"] = value.contiguous()
    for name, value in pipeline.vae.state_dict().items():
        for pattern, named in _VAE:
            name = re.sub(pattern, named, name)  # noqa: PLW2901
        if ".attn_1." in name and value.ndim == 2:
            value = value[:, :, None, None]  # noqa: PLW2901
        state[f"first_stage_model.{name}"] = value.contiguous()
    for name, value in pipeline.text_encoder.state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value.contiguous()
    return state


def cached_settings(folder: Path, cache: Path, repository: str) -> None:
    """Put a pipeline folder's configuration and tokenizer files, without weights, into a hub cache."""
    commit = "0" * 40
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".txt"):
            target = home / "snapshots" / commit / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def checkpoint_pipeline(folder: Path) -> Any:
    """A tiny pipeline of two layers a block, which checkpoints have, saved to a folder."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from tests.support.tiny_pipeline import tiny_pipeline

    pipeline = tiny_pipeline(folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipeline.unet = UNet2DConditionModel.from_config(pipeline.unet.config, layers_per_block=2)
        pipeline.vae = AutoencoderKL.from_config(pipeline.vae.config, layers_per_block=2)
    pipeline.save_pretrained(folder)
    return pipeline
