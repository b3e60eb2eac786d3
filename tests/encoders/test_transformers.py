from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from open_clip import SimpleTokenizer

from cdkit.core.errors import ConfigError, InputError, NetworkError
from cdkit.core.text import clean_caption, clean_captions
from cdkit.encoders import load_text_encoder
from cdkit.encoders.transformers import FastClipTokenizer
from tests.core.test_text import TEXTS
from tests.encoders.conftest import CAPTIONS
from tests.support import tiny_models

LIBRARY = tiny_models.clip_tokenizer()
FAST = FastClipTokenizer(
    SimpleTokenizer(), lambda: LIBRARY, {*LIBRARY.all_special_tokens, *LIBRARY.get_added_vocab()}, 77
)


@torch.inference_mode()
def padded(folder: Path, kind: str) -> np.ndarray:
    """The library's own embeddings of the cleaned captions at full length."""
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    length = model.config.get_text_config().max_position_embeddings
    cleaned = clean_captions(CAPTIONS)
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    ids = tokenizer(cleaned, **options)["input_ids"]
    if kind == "CLIPTextModelWithProjection":
        found = model(input_ids=ids).text_embeds
    else:
        found = model.get_text_features(input_ids=ids).pooler_output
    return torch.nn.functional.normalize(found, dim=-1).numpy()


def test_clip_model_equals_its_padded_result(clip_model: Path) -> None:
    encoder = load_text_encoder(f"transformers:{clip_model}", device="cpu")
    assert encoder.trims
    assert (encoder.dimension, encoder.context_length) == (48, 77)
    found = encoder.encode(CAPTIONS)
    assert np.abs(found - padded(clip_model, "CLIPModel")).max() < 1e-5
    assert np.ptp(found, axis=0).max() > 0.1
    assert encoder.token_counts(["", "word " * 200]).tolist() == [2, 202]


def test_a_config_with_the_old_end_token_pools_the_highest_id(tmp_path: Path) -> None:
    folder = tiny_models.clip_folder(tmp_path / "old", end_id=2)
    encoder = load_text_encoder(f"transformers:{folder}", device="cpu")
    assert encoder.trims
    assert np.abs(encoder.encode(CAPTIONS) - padded(folder, "CLIPModel")).max() < 1e-5


def test_a_vocabulary_of_its_own(clip_text_model: Path) -> None:
    encoder = load_text_encoder(f"transformers:{clip_text_model}", device="cpu")
    assert encoder.trims
    assert np.abs(encoder.encode(CAPTIONS) - padded(clip_text_model, "CLIPTextModelWithProjection")).max() < 1e-5
    assert encoder.token_counts(["", "abc", "x" * 300]).tolist() == [2, 5, 302]


def test_siglip_runs_at_its_full_length(siglip_model: Path) -> None:
    encoder = load_text_encoder(f"transformers:{siglip_model}", device="cpu")
    assert not encoder.trims
    assert encoder.context_length == 32
    assert np.abs(encoder.encode(CAPTIONS) - padded(siglip_model, "SiglipModel")).max() < 1e-5
    assert encoder.token_counts(["x" * 300]).tolist() == [302]


@pytest.mark.parametrize("kind", ["clip", "letters", "siglip"])
def test_captions_that_clean_to_the_same_text_have_one_embedding(
    clip_model: Path, clip_text_model: Path, siglip_model: Path, kind: str
) -> None:
    folder = {"clip": clip_model, "letters": clip_text_model, "siglip": siglip_model}[kind]
    encoder = load_text_encoder(f"transformers:{folder}", device="cpu")
    spellings = ["Jack&#39;s star", "jack\u2019s  STAR", "Jack&amp;#39;s star", " Jack's\u00a0star\n", "jack's star"]
    assert len({row.tobytes() for row in encoder.encode(spellings)}) == 1
    assert len(set(encoder.token_counts(spellings).tolist())) == 1


def test_a_pad_token_that_is_a_word_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    # Stable Diffusion 2's tokenizer pads with "!", and so reads the mark as that token wherever it stands.
    folder = tiny_models.clip_folder(tmp_path / "model")
    from transformers import AutoTokenizer

    tokenizer = tiny_models.clip_tokenizer()
    tokenizer.pad_token = "!"
    tokenizer.save_pretrained(folder)
    encoder = load_text_encoder(f"transformers:{folder}", device="cpu")
    found = encoder.tokenize(["Stop! it&#39;s a dog", "a dog"])
    expected = AutoTokenizer.from_pretrained(folder)(["stop! it's a dog", "a dog"])["input_ids"]
    assert expected[0][2] == 0
    assert found.ids.tolist() == [index for row in expected for index in row]


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_any_text_gets_the_tokens_of_the_library(text: str) -> None:
    found, expected = FAST([text]), LIBRARY(clean_caption(text))["input_ids"]
    assert found.full_lengths.tolist() == [len(expected)]
    assert found.ids.tolist() == LIBRARY(clean_caption(text), truncation=True, max_length=77)["input_ids"]


def test_the_same_weights_give_the_same_hash_in_either_class(clip_model: Path, tmp_path: Path) -> None:
    from transformers import CLIPTextModelWithProjection

    text = CLIPTextModelWithProjection.from_pretrained(clip_model, config=_text_config(clip_model))
    text.save_pretrained(tmp_path / "text")
    tiny_models.clip_tokenizer().save_pretrained(tmp_path / "text")
    both = [load_text_encoder(f"transformers:{folder}", device="cpu") for folder in (clip_model, tmp_path / "text")]
    assert both[0].weights_hash() == both[1].weights_hash()
    assert np.array_equal(both[0].encode(CAPTIONS), both[1].encode(CAPTIONS))


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
