from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from cdkit.core.errors import ConfigError, InputError, NetworkError
from cdkit.encoders import load_text_encoder
from cdkit.encoders import open_clip as library
from tests.encoders.conftest import CAPTIONS
from tests.support import tiny_models


@torch.inference_mode()
def padded(folder: Path, captions: tuple[str, ...] = CAPTIONS) -> np.ndarray:
    """open_clip's own embeddings, at the full context."""
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(list(captions))
    return torch.nn.functional.normalize(model.encode_text(tokens), dim=-1).numpy()


def test_trimmed_equals_padded(open_clip_model: Path) -> None:
    encoder = load_text_encoder(f"open_clip:{open_clip_model}", device="cpu")
    found = encoder.encode(CAPTIONS)
    assert encoder.trims
    assert (encoder.dimension, encoder.context_length, encoder.precision) == (32, 77, "fp32")
    assert found.dtype == np.float32
    assert np.abs(found - padded(open_clip_model)).max() < 1e-5
    assert np.ptp(found, axis=0).max() > 0.1  # the random tower does tell captions apart


@pytest.mark.parametrize(
    ("text", "trims"),
    [
        ({"pool_type": "eos", "eos_id": 49407}, True),
        ({"ls_init_value": 0.7}, True),
        ({"proj_bias": True}, True),
        ({"context_length": 32}, True),
        ({"tokenizer_kwargs": {"clean": "canonicalize"}}, True),
        ({"tokenizer_kwargs": {"clean": "whitespace"}}, True),
        ({"pool_type": "last"}, False),
        ({"pool_type": "first"}, False),
        ({"no_causal_mask": True}, False),
        ({"embed_cls": True, "context_length": 76}, False),
        ({"block_type": "custom"}, False),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else str(value),
)
def test_every_kind_of_tower_equals_its_own_padded_result(tmp_path: Path, text: dict[str, Any], trims: bool) -> None:
    folder = tiny_models.open_clip_folder(tmp_path / "model", **text)
    encoder = load_text_encoder(f"open_clip:{folder}", device="cpu")
    assert encoder.trims is trims
    assert np.abs(encoder.encode(CAPTIONS) - padded(folder)).max() < 1e-5


def test_a_library_tokenizer_behind_open_clip_gets_captions_as_written(tmp_path: Path) -> None:
    tiny_models.clip_tokenizer().save_pretrained(tmp_path)
    folder = tiny_models.open_clip_folder(tmp_path, hf_tokenizer_name=str(tmp_path))
    encoder = load_text_encoder(f"open_clip:{folder}", device="cpu")
    assert np.abs(encoder.encode(CAPTIONS) - padded(folder)).max() < 1e-5
    # Counted as it is read: three tokens of text, not those of the entity.
    assert encoder.token_counts(["Jack&#39;s"]).tolist() == encoder.token_counts(["Jack's"]).tolist() == [4]


def test_captions_that_clean_to_the_same_text_have_one_embedding(open_clip_model: Path) -> None:
    encoder = load_text_encoder(f"open_clip:{open_clip_model}", device="cpu")
    spellings = ["Jack&#39;s star", "jack\u2019s  STAR", "Jack&amp;#39;s star", " Jack's\u00a0star\n", "jack's star"]
    assert len({row.tobytes() for row in encoder.encode(spellings)}) == 1
    assert len(set(encoder.token_counts(spellings).tolist())) == 1


def test_a_config_that_lies_about_padding_is_found_out(open_clip_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Someone's tower that looks causal but sees everything: the probe must refuse to trim.
    model = open_clip.create_model(f"local-dir:{open_clip_model}").eval()
    model.attn_mask.zero_()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{open_clip_model}")
    tower = library.text_tower(model, tokenizer, {})
    assert tower.trimmed is not None
    encoder = library_encoder(tower)
    assert not encoder.trims
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model.encode_text(tokenizer(list(CAPTIONS))), dim=-1).numpy()
    assert np.abs(encoder.encode(CAPTIONS) - expected).max() < 1e-5


def library_encoder(tower: Any) -> Any:
    from cdkit.encoders.text_tower import TowerTextEncoder

    return TowerTextEncoder("test", tower, device="cpu", precision="fp32", threshold=0.85)


def test_batches_do_not_change_an_embedding(open_clip_model: Path) -> None:
    encoder = load_text_encoder(f"open_clip:{open_clip_model}", device="cpu")
    captions = [f"{word} number {i}" * (i % 5 + 1) for i in range(80) for word in ("cat", "dog")]
    together = encoder.encode(captions)
    alone = np.concatenate([encoder.encode([caption]) for caption in captions[:20]])
    assert np.abs(together[:20] - alone).max() < 1e-6
    assert np.array_equal(encoder.encode(captions), together)


def test_advance_counts_every_caption(open_clip_model: Path) -> None:
    encoder = load_text_encoder(f"open_clip:{open_clip_model}", device="cpu")
    steps: list[int] = []
    encoder.encode(["a dog"] * 3000, advance=steps.append)
    assert sum(steps) == 3000
    assert len(steps) > 1
    assert encoder.encode([]).shape == (0, 32)


def test_the_vision_tower_is_not_kept(open_clip_model: Path) -> None:
    tower = library.load_tower(str(open_clip_model))
    assert not [name for name in tower.module.state_dict() if name.startswith("visual.")]


def test_the_hash_is_of_the_text_tower(open_clip_model: Path, tmp_path: Path) -> None:
    def hashed(change: str | None, amount: float = 1.0) -> str:
        folder = tmp_path / f"{change}{amount}"
        shutil.copytree(open_clip_model, folder)
        if change:
            weights = load_file(folder / "open_clip_model.safetensors")
            weights[change] = weights[change] + amount
            save_file(weights, folder / "open_clip_model.safetensors")
        return load_text_encoder(f"open_clip:{folder}", device="cpu").weights_hash()

    original = hashed(None)
    assert hashed("visual.proj") == original
    assert hashed("ln_final.weight") != original
    assert load_text_encoder(f"open_clip:{open_clip_model}", device="cpu", precision="bf16").weights_hash() == original


def test_half_precision_is_close(open_clip_model: Path) -> None:
    exact = load_text_encoder(f"open_clip:{open_clip_model}", device="cpu")
    half = load_text_encoder(f"open_clip:{open_clip_model}", device="cpu", precision="bf16")
    assert half.precision == "bf16"
    assert 1e-6 < np.abs(half.encode(CAPTIONS) - exact.encode(CAPTIONS)).max() < 0.03


def test_broken_weights_are_refused(open_clip_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(open_clip_model, folder)
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["ln_final.weight"][3] = float("nan")
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(InputError, match="NaN"):
        load_text_encoder(f"open_clip:{folder}", device="cpu").encode(["a dog"])


def test_an_incomplete_folder_is_an_input_error(open_clip_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(open_clip_model, folder)
    weights = load_file(folder / "open_clip_model.safetensors")
    del weights["text_projection"]
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(InputError, match="text_projection"):
        load_text_encoder(f"open_clip:{folder}")
    (folder / "open_clip_model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError):
        load_text_encoder(f"open_clip:{folder}")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        load_text_encoder(f"open_clip:{folder}")
    (folder / "open_clip_config.json").write_text(json.dumps({"embed_dim": 3}))
    with pytest.raises(InputError, match="model_cfg"):
        load_text_encoder(f"open_clip:{folder}")


def test_unknown_names_suggest_known_ones() -> None:
    with pytest.raises(ConfigError, match="ViT-L-1"):
        load_text_encoder("open_clip:ViT-L-41/openai")
    with pytest.raises(ConfigError, match="'openai'"):
        load_text_encoder("open_clip:ViT-L-14/opennai")
    with pytest.raises(ConfigError, match="needs the name") as caught:
        load_text_encoder("open_clip:ViT-L-14")
    assert "openai" in caught.value.hint


def test_a_listed_model_that_cannot_be_fetched_is_a_network_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for spec in ("open_clip:ViT-B-32/openai", "open_clip:hf-hub:nobody/nothing"):
        with pytest.raises(NetworkError) as caught:
            load_text_encoder(spec)
        assert caught.value.hint


def test_openai_weights_run_with_their_quickgelu(monkeypatch: pytest.MonkeyPatch, open_clip_model: Path) -> None:
    from open_clip import pretrained

    monkeypatch.setattr(pretrained, "download_pretrained", lambda settings: "checkpoint")
    assert library.find_source("ViT-L-14/openai").quick_gelu is True
    assert library.find_source("ViT-L-14/datacomp_xl_s13b_b90k").quick_gelu is False
