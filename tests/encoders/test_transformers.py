from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cdkit.encoders import load_text_encoder
from cdkit.errors import ConfigError, InputError, NetworkError
from cdkit.text import clean_captions
from tests.encoders.conftest import CAPTIONS
from tests.support import tiny_models

# The special words are left out: transformers' tokenizer makes its own of them wherever they stand.
PLAIN = [caption for caption in clean_captions(CAPTIONS) if "<" not in caption]


@torch.inference_mode()
def padded(folder: Path, captions: list[str], kind: str) -> np.ndarray:
    """The library's own embeddings at full length."""
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    length = model.config.get_text_config().max_position_embeddings
    ids = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")[
        "input_ids"
    ]
    if kind == "CLIPTextModelWithProjection":
        found = model(input_ids=ids).text_embeds
    else:
        found = model.get_text_features(input_ids=ids).pooler_output
    return torch.nn.functional.normalize(found, dim=-1).numpy()


def test_clip_model_equals_its_padded_result(clip_model: Path) -> None:
    encoder = load_text_encoder(f"transformers:{clip_model}", device="cpu")
    assert encoder.trims
    assert (encoder.dimension, encoder.context_length) == (48, 77)
    found = encoder.encode(PLAIN)
    assert np.abs(found - padded(clip_model, PLAIN, "CLIPModel")).max() < 1e-5
    assert np.ptp(found, axis=0).max() > 0.1
    assert encoder.token_counts(["", "word " * 200]).tolist() == [2, 202]


def test_a_config_with_the_old_end_token_pools_the_highest_id(tmp_path: Path) -> None:
    folder = tiny_models.clip_folder(tmp_path / "old", end_id=2)
    encoder = load_text_encoder(f"transformers:{folder}", device="cpu")
    assert encoder.trims
    assert np.abs(encoder.encode(PLAIN) - padded(folder, PLAIN, "CLIPModel")).max() < 1e-5


def test_a_vocabulary_of_its_own(clip_text_model: Path) -> None:
    encoder = load_text_encoder(f"transformers:{clip_text_model}", device="cpu")
    assert encoder.trims
    assert np.abs(encoder.encode(PLAIN) - padded(clip_text_model, PLAIN, "CLIPTextModelWithProjection")).max() < 1e-5
    assert encoder.token_counts(["", "abc", "x" * 300]).tolist() == [2, 5, 302]


def test_siglip_runs_at_its_full_length(siglip_model: Path) -> None:
    encoder = load_text_encoder(f"transformers:{siglip_model}", device="cpu")
    assert not encoder.trims
    assert encoder.context_length == 32
    assert np.abs(encoder.encode(PLAIN) - padded(siglip_model, PLAIN, "SiglipModel")).max() < 1e-5
    assert encoder.token_counts(["x" * 300]).tolist() == [302]


def test_the_same_weights_give_the_same_hash_in_either_class(clip_model: Path, tmp_path: Path) -> None:
    from transformers import CLIPTextModelWithProjection

    text = CLIPTextModelWithProjection.from_pretrained(clip_model, config=_text_config(clip_model))
    text.save_pretrained(tmp_path / "text")
    tiny_models.clip_tokenizer().save_pretrained(tmp_path / "text")
    both = [load_text_encoder(f"transformers:{folder}", device="cpu") for folder in (clip_model, tmp_path / "text")]
    assert both[0].weights_hash() == both[1].weights_hash()
    assert np.array_equal(both[0].encode(PLAIN), both[1].encode(PLAIN))


def _text_config(folder: Path) -> object:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    config.text_config.projection_dim = config.projection_dim
    return config.text_config


def test_a_text_model_without_projection_is_refused(tmp_path: Path) -> None:
    from transformers import CLIPTextModel

    CLIPTextModel(tiny_models.clip_config().text_config).save_pretrained(tmp_path / "model")
    tiny_models.clip_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="text_projection"):
        load_text_encoder(f"transformers:{tmp_path / 'model'}")


def test_other_models_and_damaged_folders(tmp_path: Path, clip_model: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="bert"):
        load_text_encoder(f"transformers:{tmp_path / 'bert'}")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((clip_model / "config.json").read_bytes())
    with pytest.raises(InputError, match="bare"):
        load_text_encoder(f"transformers:{tmp_path / 'bare'}")


def test_a_hub_model_that_cannot_be_fetched_is_a_network_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NetworkError) as caught:
        load_text_encoder("transformers:nobody/no-such-clip")
    assert "folder" in caught.value.hint
