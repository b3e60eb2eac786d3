"""Vocabularies: surface forms, merge ranks, containment; and specs that name tokenizers, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPTokenizer

from cdkit.core.errors import InputError, NetworkError
from cdkit.tokens.vocabulary import Tower, Vocabulary, load_towers, tower_of
from tests.tokens.conftest import write_classic_tokenizer


def test_clips_own_entries(clip: Tower) -> None:
    vocabulary = clip.vocabulary
    assert len(vocabulary) == 49408
    assert vocabulary.ids["ktn"] == 42170
    assert "ktn</w>" not in vocabulary.ids
    assert (vocabulary.ids["pll"], vocabulary.ids["pll</w>"]) == (47629, 25266)
    assert (vocabulary.ids["ucd"], vocabulary.ids["ucd</w>"]) == (44746, 43514)
    assert vocabulary.specials == {49406, 49407}
    # CLIP numbers its merges after 256 bytes and 256 bytes that end a word.
    assert vocabulary.merge_ranks["ktn"] == 42170 - 512


def test_what_contains_the_papers_tokens_and_sks(clip: Tower) -> None:
    vocabulary = clip.vocabulary
    for letters in ("ktn", "pll", "ucd"):
        assert list(vocabulary.containing(letters)) == []
    inside = {vocabulary.letters[index] for index in vocabulary.containing("sks")}
    assert {"asks", "risks", "masks"} <= inside


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, unique=True), st.text("ab", min_size=1, max_size=3))
def test_containing_is_the_substring_test(surfaces: list[str], letters: str) -> None:
    vocabulary = Vocabulary(tuple(entry for surface in surfaces for entry in (surface, f"{surface}</w>")))
    expected = [index for index, surface in enumerate(vocabulary.letters) if letters in surface and surface != letters]
    assert list(vocabulary.containing(letters)) == expected


def test_surface_forms_as_text(clip: Tower) -> None:
    vocabulary = clip.vocabulary
    assert vocabulary.text(vocabulary.ids["cafÃ©</w>"]) == "café"
    assert vocabulary.text(vocabulary.ids["Ã"]) is None
    assert vocabulary.text(vocabulary.ids["dog</w>"]) == "dog"


def test_a_models_own_tokenizers(tmp_path: Path, clip: Tower) -> None:
    write_classic_tokenizer(tmp_path / "sd" / "tokenizer")
    (tower,) = load_towers(str(tmp_path / "sd"))
    assert tower.vocabulary == clip.vocabulary
    (alone,) = load_towers(str(tmp_path / "sd" / "tokenizer"))
    assert alone.same_as(tower)
    (default,) = load_towers("clip")
    assert default.same_as(clip)


def test_the_callers_tokenizer_stays_as_it_is(clip_tokenizer: CLIPTokenizer) -> None:
    backend = Tokenizer.from_str(clip_tokenizer.backend_tokenizer.to_str())
    backend.enable_truncation(5)
    tower = tower_of("tokenizer", backend)
    assert (backend.truncation or {})["max_length"] == 5
    assert len(tower.encode(["dog " * 50])[0]) == 50


def test_vocabulary_without_merges(tmp_path: Path) -> None:
    write_classic_tokenizer(tmp_path / "tokenizer", merges=False)
    with pytest.raises(InputError, match=r"no merges \(merges.txt\)"):
        load_towers(str(tmp_path))
    with pytest.raises(InputError, match="no merges"):
        Vocabulary(("a", "a</w>")).require_ranks("tokenizer")


def test_a_tokenizer_that_is_not_clips() -> None:
    backend = Tokenizer(models.WordLevel({"dog": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tower = tower_of("tokenizer", backend)
    with pytest.raises(InputError, match="does not mark"):
        tower.vocabulary.require_ranks("tokenizer")


def test_folders_without_a_usable_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_towers(str(tmp_path))
    with pytest.raises(InputError, match="does not exist"):
        load_towers(str(tmp_path / "nothing"))
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_towers(str(tmp_path))


def test_a_hub_id_without_network() -> None:
    with pytest.raises(NetworkError, match="could not be fetched"):
        load_towers("nobody/no-such-model")
