"""Norms whose pictures lie channels together do what PyTorch's do; residual blocks run in fewer kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from cdkit.training.layout import _is_plain, use_fewer_kernels
from tests.support.tiny_pipeline import tiny_pipeline
from tests.support.tiny_xl_pipeline import tiny_xl_pipeline


def test_the_kernels_of_a_gpu_do_what_pytorch_does() -> None:
    """By Triton's interpreter, which must be asked for before Triton is imported."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "tests.training.test_layout"]
    ended = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def _compare(*, silu: bool, shifted: bool) -> None:
    from cdkit.training.norms import group_norm

    random = torch.Generator().manual_seed(0)
    norm = nn.GroupNorm(4, 72).requires_grad_(False)
    for parameter in norm.parameters():
        parameter.data.normal_(generator=random)
    # Neither rows nor channels are a multiple of what a program reads, and rows are more than one program's.
    values = torch.randn(1, 72, 17, 17, generator=random) * 2 + 1
    shift = torch.randn(1, 72, generator=random) if shifted else None
    passed = torch.randn(values.shape, generator=random)
    found, wanted = (values.clone().requires_grad_(True) for _ in range(2))
    output = group_norm(found, norm, silu=silu, shift=shift)
    output.backward(passed)
    expected = norm(wanted if shift is None else wanted + shift[:, :, None, None])
    expected = functional.silu(expected) if silu else expected
    expected.backward(passed)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-5, atol=1e-5)
    assert output.is_contiguous(memory_format=torch.channels_last)


def _compare_gated() -> None:
    from cdkit.training.gated import geglu

    random = torch.Generator().manual_seed(0)
    values = torch.randn(2, 3, 2 * 1100, generator=random) * 2
    passed = torch.randn(2, 3, 1100, generator=random)
    found, wanted = (values.clone().requires_grad_(True) for _ in range(2))
    output = geglu(found)
    output.backward(passed)
    value, gate = wanted.chunk(2, dim=-1)
    expected = value * functional.gelu(gate)
    expected.backward(passed)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-5, atol=1e-5)


def test_only_frozen_residual_blocks_of_the_known_kind_are_run_in_fewer_kernels() -> None:
    from diffusers.models.resnet import ResnetBlock2D

    sizes = {"in_channels": 32, "out_channels": 64, "temb_channels": 16, "groups": 8}
    assert _is_plain(ResnetBlock2D(**sizes).requires_grad_(False))
    assert not _is_plain(ResnetBlock2D(**sizes)), "its norms train"
    assert not _is_plain(ResnetBlock2D(**sizes, time_embedding_norm="scale_shift").requires_grad_(False))
    assert not _is_plain(ResnetBlock2D(**sizes, non_linearity="gelu").requires_grad_(False))
    assert not _is_plain(ResnetBlock2D(**sizes, up=True).requires_grad_(False))


def _gradient(unet: Any, noise: torch.Tensor, added: Any) -> list[torch.Tensor]:
    """What a U-Net predicts, and the gradients of the text and of the trained weights."""
    random = torch.Generator().manual_seed(2)
    text = torch.randn(len(noise), 77, unet.config.cross_attention_dim, generator=random).requires_grad_(True)
    predicted = unet(noise, torch.arange(len(noise)), encoder_hidden_states=text, added_cond_kwargs=added).sample
    predicted.square().sum().backward()
    gradients = [p.grad for p in unet.parameters() if p.grad is not None]
    assert text.grad is not None
    assert len(gradients) >= 8
    for parameter in unet.parameters():
        parameter.grad = None
    return [predicted.detach(), text.grad, *gradients]


@pytest.mark.parametrize("base", ["sd", "xl"])
def test_models_in_fewer_kernels_compute_what_diffusers_computes(tmp_path: Path, base: str) -> None:
    """The forwards of a GPU around PyTorch's kernels; frozen, checkpointed, encoding and decoding."""
    pipeline = tiny_pipeline(tmp_path) if base == "sd" else tiny_xl_pipeline(tmp_path)
    unet, vae = pipeline.unet.requires_grad_(False), pipeline.vae.requires_grad_(False)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")))
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4, unet.config.sample_size, unet.config.sample_size, generator=random)
    pixels = torch.rand(2, 3, 32, 32, generator=random)
    added = None
    if base == "xl":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(2, pooled, generator=random), "time_ids": torch.ones(2, 6)}

    def outcome() -> list[torch.Tensor]:
        encoded = vae.encode(pixels).latent_dist
        return [*_gradient(unet, noise, added), encoded.mean, encoded.std, vae.decode(encoded.mean).sample]

    wanted = outcome()
    for model in (unet, vae):
        use_fewer_kernels(model)
        model.to(memory_format=torch.channels_last)
    replaced = [module for model in (unet, vae) for module in model.modules() if "forward" in vars(module)]
    assert {type(module).__name__ for module in replaced} == {"ResnetBlock2D", "GroupNorm", "GEGLU"}
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        for one, other in zip(outcome(), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    _compare(silu=False, shifted=False)
    _compare(silu=True, shifted=True)
    _compare_gated()
