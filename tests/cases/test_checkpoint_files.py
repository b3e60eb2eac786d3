"""Base models that are one file, or come from the hub's cache, and specs that are neither."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cdkit.core.errors import CdkitError, ConfigError, InputError, NetworkError
from cdkit.deltas.base_model import base_hash
from cdkit.deltas.formats.lora import write_full_matrices
from tests.cases.test_base_models import POINTER, TEXT, UNET, VAE, _load, _Trap
from tests.cli.running import ran
from tests.support.made_deltas import made_delta
from tests.support.single_file import cached_settings, checkpoint_pipeline, single_file_state

SD1 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder, its weights as one file in two formats, and its settings as a hub's cache has them."""
    root = tmp_path_factory.mktemp("checkpoint")
    state = single_file_state(checkpoint_pipeline(root / "folder"))
    save_file(state, str(root / "model.safetensors"))
    torch.save({"state_dict": state, "global_step": 7}, root / "model.ckpt")
    cached_settings(root / "folder", root / "cache", SD1)
    return root


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_one_file_is_loaded_where_its_settings_are_cached(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(checkpoint / "cache"))
    found, whole = _load(checkpoint / name), _load(checkpoint / "folder")
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(whole, part).state_dict()
        state = getattr(found, part).state_dict()
        assert set(state) == set(expected)
        assert all(torch.equal(state[key], expected[key]) for key in state)
    words = ["--base", checkpoint / name, "--seeds", 1, "--steps", 2, "--out", tmp_path / "out"]
    assert ran(["sample", "--prompt", "a cat", *words]).code == 0


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_one_file_without_settings_says_what_to_fetch(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    done = ran(["sample", "--base", checkpoint / name, "--prompt", "a cat", "--out", tmp_path / "out"])
    assert done.code == 3, done.err
    assert "a whole Stable Diffusion 1 model" in done.err
    assert f"hf download {SD1}" in done.err


def test_one_file_of_which_a_part_is_missing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(checkpoint / "cache"))
    state = load_file(str(checkpoint / "model.safetensors"))
    for start in ("model.diffusion_model.out.2.", "cond_stage_model.transformer.text_model.encoder.layers.1."):
        kept = {key: value for key, value in state.items() if not key.startswith(start)}
        save_file(kept, str(tmp_path / "part.safetensors"))
        with pytest.raises(InputError, match=r"cannot be loaded|lacks"):
            _load(tmp_path / "part.safetensors")


def _other_files(folder: Path) -> dict[str, str]:
    """Files that are no base models, and what they are."""
    names = {
        "delta.safetensors": "is a delta",
        "lora.safetensors": "is a LoRA",
        "part.safetensors": "is one part of a model",
        "embedding.safetensors": "is no checkpoint of Stable Diffusion: it holds '<new1>'",
        "flux.safetensors": "of another family",
        "pointer.ckpt": "a Git LFS pointer",
        "code.ckpt": "more than plain tensors",
        "list.ckpt": "no named tensors",
        "cut.safetensors": "is cut short",
    }
    from cdkit.deltas.delta import save_delta

    delta = made_delta(_load("embedded"))
    save_delta(delta, folder / "delta.safetensors")
    write_full_matrices(delta, folder / "lora.safetensors", half=False)
    save_file({"down_blocks.0.resnets.0.conv1.weight": torch.ones(3)}, str(folder / "part.safetensors"))
    save_file({"<new1>": torch.ones(3)}, str(folder / "embedding.safetensors"))
    save_file({"model.diffusion_model.double_blocks.0.x": torch.ones(3)}, str(folder / "flux.safetensors"))
    (folder / "pointer.ckpt").write_bytes(POINTER)
    torch.save({"state_dict": {}, "callbacks": _Trap(folder / "sprung")}, folder / "code.ckpt")
    torch.save([torch.ones(3)], folder / "list.ckpt")
    (folder / "cut.safetensors").write_bytes((folder / "delta.safetensors").read_bytes()[:-100])
    return names


def test_files_that_are_no_base_model_are_named(tmp_path: Path) -> None:
    for name, words in _other_files(tmp_path).items():
        with pytest.raises(CdkitError, match=words):
            _load(tmp_path / name)
    done = ran(["train", "--base", tmp_path / "lora.safetensors", "--concept", "a=b", "--out", tmp_path / "o"])
    assert done.code in (2, 3)
    assert "bug" not in done.err


def test_weights_of_a_single_file_are_compared(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(checkpoint / "cache"))
    words = ["--base", checkpoint / "folder", "--tuned", checkpoint / "model.safetensors", "--format", "json"]
    done = ran(["inspect", "weights", *words])
    assert done.code == 0, done.err
    assert all(group["moved"] == 0 for group in done.data["groups"])


def test_a_hub_model_is_loaded_from_the_cache_alone(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(NetworkError, match="somebody/tiny"):
        _load("somebody/tiny")
    cached_settings(sound, tmp_path / "cache", "somebody/tiny")
    with pytest.raises(InputError, match="holds no weights"):
        _load("somebody/tiny")
    (snapshot,) = (tmp_path / "cache" / "models--somebody--tiny" / "snapshots").iterdir()
    for name in (UNET, VAE, TEXT):
        shutil.copy(sound / name, snapshot / name.replace(".safetensors", ".fp16.safetensors"))
    assert base_hash(_load("somebody/tiny")) == base_hash(_load(sound))


@pytest.mark.parametrize("spec", ["no/such/model", "./nothing", "embeded", "x.safetensors"])
def test_what_is_not_there_is_said(spec: str) -> None:
    with pytest.raises(ConfigError, match="There is no base model"):
        _load(spec)
