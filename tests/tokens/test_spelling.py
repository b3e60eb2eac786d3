"""Vocabularies of other text encoders: T5's, Qwen's and Gemma's kinds, small ones, laid out as models have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from cdkit.core.errors import InputError
from cdkit.tokens.config import RareRule
from cdkit.tokens.count import TokenCounts, count_tokens
from cdkit.tokens.explain import explain_words
from cdkit.tokens.rare import find_rare
from cdkit.tokens.spelling import BYTE_LEVEL, CLIP_SPELLING, SENTENCEPIECE
from cdkit.tokens.vocabulary import Tower, load_towers
from tests.tokens.conftest import write_classic_tokenizer

WORDS = ["dog", "ask", "desks"]
GEMMA_SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>"]


def t5(folder: Path) -> Path:
    """Unigram pieces with their logarithmic probabilities, the commonest first, and T5's end token."""
    letters = sorted(set("".join(WORDS) + "zqxé"))
    pieces = ["<pad>", "</s>", "<unk>", "▁", "s", "▁a", "▁dog", "ks", "▁ask", "▁desks", "sks", "zqx", "▁zqx", *letters]
    pieces = list(dict.fromkeys(pieces))
    scores = [(piece, 0.0 if place < 3 else -float(place)) for place, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return _saved(tokenizer, folder, "T5Tokenizer")


def _pairs(*pairs: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of byte pairs: the letters, then what each merge makes."""
    merges = [(first, second) for first, second in (pair.split(" ") for pair in pairs)]
    letters = sorted({letter for pair in merges for part in pair for letter in part} | set("éÃ©"))
    entries = dict.fromkeys([*letters, *(first + second for first, second in merges)])
    return {entry: index for index, entry in enumerate(entries)}, merges


def qwen(folder: Path) -> Path:
    vocabulary, merges = _pairs("Ġ a", "Ġ d", "o g", "Ġd og", "k s", "s ks", "a sks", "Ġ sks", "z q", "zq x")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return _saved(tokenizer, folder, "Qwen2Tokenizer")


def gemma(folder: Path) -> Path:
    vocabulary, merges = _pairs("▁ a", "▁ d", "o g", "▁d og", "k s", "s ks", "a sks", "▁ sks", "z q", "zq x")
    vocabulary |= {entry: len(vocabulary) + place for place, entry in enumerate(GEMMA_SPECIALS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(GEMMA_SPECIALS)
    return _saved(tokenizer, folder, "GemmaTokenizer")


def _saved(tokenizer: Tokenizer, folder: Path, class_name: str) -> Path:
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_name}))
    return folder


def tower_at(folder: Path) -> Tower:
    (tower,) = load_towers(f"transformers:{folder}")
    return tower


def test_each_kind_is_told_by_how_it_marks_words(tmp_path: Path, clip: Tower) -> None:
    assert clip.vocabulary.spelling is CLIP_SPELLING
    unigram, byte_level, pairs = (
        tower_at(make(tmp_path / name)).vocabulary for name, make in (("t5", t5), ("q", qwen), ("g", gemma))
    )
    kinds = (unigram.spelling, byte_level.spelling, pairs.spelling)
    assert kinds == (SENTENCEPIECE, BYTE_LEVEL, SENTENCEPIECE)
    for vocabulary, mark in ((unigram, "▁"), (byte_level, "Ġ"), (pairs, "▁")):
        index = vocabulary.ids[f"{mark}dog"]
        assert (vocabulary.letters[index], vocabulary.text(index), vocabulary.is_word(index)) == ("dog", "dog", True)
        assert not vocabulary.is_word(vocabulary.ids["ks"])
        assert vocabulary.letters[vocabulary.ids[mark]] == mark, "the mark alone is no word without letters"
        vocabulary.require_ranks("a model")
    assert unigram.merge_ranks["▁zqx"] > unigram.merge_ranks["▁dog"], "the less likely, the higher"
    assert (unigram.spelt("é"), byte_level.spelt("é"), pairs.spelt("é")) == ("é", "Ã©", "é")
    assert byte_level.text(byte_level.ids["Ã"]) is None


def test_part_of_no_other_token_is_said_of_each_kind(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_classic_tokenizer(folder / "tokenizer")
    write_classic_tokenizer(folder / "tokenizer_2")
    t5(folder / "tokenizer_3")
    qwen(folder / "tokenizer_4")
    clip, unigram, byte_level = explain_words(["sks"], str(folder))
    assert [answer.towers for answer in (clip, unigram, byte_level)] == [
        "tokenizer, tokenizer_2",
        "tokenizer_3",
        "tokenizer_4",
    ]
    assert clip.sentence().startswith("tokenizer, tokenizer_2: sks: one token (sks</w>, id 48136); part of 5 other")
    # As it stands within a prompt, behind a blank.
    assert unigram.tokens == ("▁", "sks")
    assert unigram.inside == ("▁desks",)
    assert "part of 1 other token (desks)" in unigram.sentence()
    assert byte_level.tokens == ("Ġsks",)
    assert byte_level.entries == (("sks", byte_level.entries[0][1]), ("Ġsks", byte_level.ids[0]))
    assert byte_level.inside == ("asks",)
    assert byte_level.as_json()["tokenizer"] == "tokenizer_4"


def test_a_word_of_several_tokens_says_what_they_are_shared_with(clip: Tower, tmp_path: Path) -> None:
    (answer,) = explain_words(["zqxsks"], str(gemma(tmp_path / "gemma")))
    assert answer.tokens[-1] == "sks"
    assert dict(answer.shared)["sks"] == ("asks",)
    assert "sks with 1 other token (asks)" in answer.sentence()
    (dog,) = explain_words(["Dog"], str(tmp_path / "gemma"))
    assert dog.ids != explain_words(["dog"], str(tmp_path / "gemma"))[0].ids, "these tell upper from lower case"
    (ohwx,) = explain_words(["ohwx"], "clip")
    assert ohwx.sentence() == "ohwx: one token (ohwx</w>, id 47993); part of no other token."


@pytest.mark.parametrize(("make", "token"), [(t5, "▁zqx"), (qwen, "zqx"), (gemma, "zqx")])
def test_rare_tokens_of_each_kind(make: object, token: str, tmp_path: Path) -> None:
    tower = tower_at(make(tmp_path / "model"))  # type: ignore[operator]
    counts = count_tokens(["a zqx", "a dog", "azqx dog"], tower)
    found = find_rare(TokenCounts((tower,), (counts,), None, 3, 3), RareRule(min_count=1, max_count=2))
    assert token in [pick.token for pick in found.picks]
    assert sum(found.rejected.values()) + len(found.picks) == len(tower.vocabulary)


def test_a_pick_meets_the_rule_in_towers_of_several_kinds(tmp_path: Path, clip: Tower) -> None:
    other = tower_at(t5(tmp_path / "t5"))
    counts = np.zeros(len(clip.vocabulary), np.int64)
    for entry in ("ask</w>", "dog</w>", "ktn"):
        counts[clip.vocabulary.ids[entry]] = 7
    theirs = np.full(len(other.vocabulary), 7, np.int64)
    rule = RareRule(inside_others=True)
    found = find_rare(TokenCounts((clip, other), (counts, theirs), None, 9, 9), rule)
    assert {pick.token for pick in found.picks} == {"ask</w>", "dog</w>"}, "ktn is no entry of the other"
    theirs[other.vocabulary.ids["▁ask"]] = 99
    found = find_rare(TokenCounts((clip, other), (counts, theirs), None, 9, 9), rule)
    assert [pick.token for pick in found.picks] == ["dog</w>"]
    assert not find_rare(TokenCounts((clip, other), (counts, theirs), None, 9, 9), RareRule()).picks


def test_counts_of_every_tower_are_kept_and_read(tmp_path: Path) -> None:
    from cdkit.execute import execute
    from cdkit.tokens.config import TokenCountsConfig

    (tmp_path / "captions.csv").write_text("caption\na dog\na desks dog\n")
    folder = tmp_path / "model"
    write_classic_tokenizer(folder / "tokenizer")
    t5(folder / "tokenizer_2")
    gemma(folder / "tokenizer_3")
    config = TokenCountsConfig(captions=[str(tmp_path / "captions.csv")], tokenizer=str(folder))
    result = execute("token-counts", config, tmp_path / "counts")
    assert [entry["tokenizer"] for entry in result.manifest.details["towers"]] == [
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    ]
    answers = explain_words(["dog"], str(folder), tmp_path / "counts")
    assert [dict(zip(dict(answer.entries), answer.counts or (), strict=True)) for answer in answers] == [
        {"dog": 0, "dog</w>": 2},
        {"▁dog": 2},
        {"▁dog": 2},
    ]


def test_a_folder_by_transformers_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_towers(f"transformers:{tmp_path}")
