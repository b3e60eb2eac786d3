from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.manifest import read_manifest
from cdkit.core.storage import read_json, write_json
from cdkit.core.text import caption_id
from cdkit.index.caption_index import open_index
from cdkit.index.search import search
from tests.support.hashing_encoder import HashingEncoder

QUERIES = ["a small red dog near the beach", "a blue cat at night", "striped ring near the old house", "nothing alike"]


def brute_force(encoder: HashingEncoder, captions: list[str], query: str, least: float) -> list[tuple[int, float]]:
    similarities = encoder.encode(captions) @ encoder.encode([query])[0]
    found = [(caption_id(text), float(value)) for text, value in zip(captions, similarities, strict=True)]
    return sorted(((i, s) for i, s in found if s >= least), key=lambda pair: (-pair[1], pair[0]))


@pytest.mark.parametrize("least", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("limit", [1, 20, 10_000])
def test_exact_search_equals_brute_force(
    exact_folder: Path, encoder: HashingEncoder, captions: list[str], least: float, limit: int
) -> None:
    for result in search(exact_folder, QUERIES, min_similarity=least, limit=limit, encoder=encoder):
        expected = brute_force(encoder, captions[:1000], result.query, least)
        assert [match.caption_id for match in result.results] == [number for number, _ in expected[:limit]]
        got = [match.similarity for match in result.results]
        assert got == pytest.approx([value for _, value in expected[:limit]], abs=1e-6)
        assert result.more == (len(expected) > limit)
        assert all(match.recomputed for match in result.results)


def test_compressed_search_meets_the_recall_its_manifest_states(
    compressed_folder: Path, encoder: HashingEncoder, captions: list[str]
) -> None:
    manifest = read_manifest(compressed_folder)
    assert manifest is not None
    recall = manifest.details["recall"]
    assert manifest.details["index"]["factory"].startswith("OPQ4_16,IVF")
    assert recall["threshold_recall"] >= 0.95
    assert recall["queries_without_neighbours"] < recall["queries"]
    unseen = [f"a {colour} {animal} near the {place}" for colour in ("red", "pink") for animal in ("dog", "boat")
              for place in ("snow", "roof")]  # fmt: skip
    found = expected = 0
    for result in search(compressed_folder, unseen, min_similarity=0.8, limit=20_000, encoder=encoder):
        truth = brute_force(encoder, captions, result.query, 0.8)
        answer = {match.caption_id: match.similarity for match in result.results}
        assert all(answer[number] == pytest.approx(value, abs=1e-6) for number, value in truth if number in answer)
        assert set(answer) <= {number for number, _ in truth}
        found += len(answer)
        expected += len(truth)
    assert expected > 100
    assert found >= (recall["threshold_recall"] - 0.02) * expected


def test_without_stored_embeddings_candidates_are_encoded_again(
    compressed_folder: Path, tmp_path: Path, encoder: HashingEncoder, captions: list[str]
) -> None:
    folder = tmp_path / "index"
    shutil.copytree(compressed_folder, folder)
    shutil.rmtree(folder / "embeddings")
    manifest = read_json(folder / "manifest.json")
    manifest["details"]["index"]["shards"]["embeddings"] = 0
    write_json(folder / "manifest.json", manifest)
    with_stored = search(compressed_folder, QUERIES, limit=50, encoder=encoder)
    for kept, again in zip(with_stored, search(folder, QUERIES, limit=50, encoder=encoder), strict=True):
        assert [match.caption_id for match in again.results] == [match.caption_id for match in kept.results]
    [capped] = search(folder, QUERIES[:1], min_similarity=0.3, limit=500, encode_limit=10, encoder=encoder)
    assert capped.encoded == 10
    assert any("10 captions" in note for note in capped.notes)
    assert len(capped.results) <= 10


def test_results_carry_captions_and_image_rows(
    exact_folder: Path, encoder: HashingEncoder, captions: list[str]
) -> None:
    [result] = search(exact_folder, [captions[0].upper()], limit=3, encoder=encoder)
    answer = result.as_json()
    first = answer["results"][0]
    assert first["caption_id"] == str(caption_id(captions[0]))
    assert first["caption"] == captions[0]
    assert first["similarity"] == pytest.approx(1)
    address = f"http://host/{caption_id(captions[0])}"
    assert [row["url"] for row in first["rows"]] == [f"{address}-0.jpg", f"{address}-1.jpg"]
    assert list(answer)[:3] == ["query", "results", "more"]


def test_searches_side_by_side_give_the_same_answers(compressed_folder: Path, encoder: HashingEncoder) -> None:
    index = open_index(compressed_folder, encoder)
    words, places = ("red", "old", "pink"), ("snow", "roof", "wall")
    queries = [f"a {word} dog near the {place}" for word in words for place in places]
    alone = [search(index, [query], limit=30)[0] for query in queries]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda query: search(index, [query], limit=30)[0], queries * 4))
    assert [result.as_json() for result in together] == [result.as_json() for result in alone * 4]


def test_mistakes_in_a_search_are_listed_together(exact_folder: Path, encoder: HashingEncoder) -> None:
    with pytest.raises(ConfigError) as caught:
        search(exact_folder, ["dog", " \n "], min_similarity=1.5, limit=0, encoder=encoder)
    assert len(caught.value.problems) == 3


def test_a_query_beyond_the_context_says_so(exact_folder: Path, encoder: HashingEncoder) -> None:
    [result] = search(exact_folder, ["dog " * 100], encoder=encoder)
    assert "102 tokens" in result.notes[0]


def test_nan_from_the_encoder_stops_the_search(exact_folder: Path) -> None:
    class Broken(HashingEncoder):
        def encode(self, captions: Sequence[str], **_: object) -> np.ndarray:
            return np.full((len(captions), self.dimension), np.nan, dtype=np.float32)

    with pytest.raises(InputError, match="NaN"):
        search(exact_folder, ["dog"], encoder=Broken(32))


def test_another_encoder_is_refused(exact_folder: Path) -> None:
    with pytest.raises(InputError, match="made with the encoder"):
        open_index(exact_folder, HashingEncoder(32, weights="other"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "caption.index").unlink(), "missing"),
        (lambda folder: os.truncate(folder / "caption.index", 1000), "damaged"),
        (lambda folder: flip(folder / "caption.index"), "damaged"),
        (lambda folder: (folder / "captions" / "part-00001.parquet").unlink(), "holds 3 shards, not 4"),
        (lambda folder: (folder / "manifest.json").unlink(), "no finished caption index"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: set_format(folder, 99), "newer cdkit"),
    ],
)
def test_a_damaged_folder_is_refused_with_a_hint(
    exact_folder: Path, tmp_path: Path, encoder: HashingEncoder, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "index"
    shutil.copytree(exact_folder, folder)
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        search(folder, ["dog"], encoder=encoder)
    assert caught.value.hint


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def set_format(folder: Path, number: int) -> None:
    manifest = read_json(folder / "manifest.json")
    manifest["details"]["index"]["format"] = number
    write_json(folder / "manifest.json", manifest)


def test_a_search_says_when_captions_may_have_been_missed(
    compressed_folder: Path, encoder: HashingEncoder, captions: list[str]
) -> None:
    index = open_index(compressed_folder, encoder)
    query = ["a small red dog near the beach"]
    [sure] = search(index, query, min_similarity=0.7, limit=20_000)
    truth = dict(brute_force(encoder, captions, sure.query, 0.7))
    near = index.faiss.within(encoder.encode(query)[0], -1.0, nprobe=index.faiss.lists)
    errors = [truth[number] - value for number, value in zip(near.ids.tolist(), near.similarities, strict=True)
              if number in truth]  # fmt: skip
    facts = {**index.facts, "margin": float(np.median(errors))}
    manifest = replace(index.manifest, details={**index.manifest.details, "index": facts})
    [unsure] = search(replace(index, manifest=manifest), query, min_similarity=0.7, limit=20_000)
    assert len(unsure.results) < len(truth)
    assert any("may have been missed" in note for note in unsure.notes)
    assert unsure.as_json()["may_have_missed"] is True
    assert sure.may_have_missed == any(error > index.margin for error in errors)


def test_a_search_that_may_not_check_all_says_so(compressed_folder: Path, encoder: HashingEncoder) -> None:
    [result] = search(compressed_folder, QUERIES[:1], min_similarity=0.6, limit=20, encode_limit=1, encoder=encoder)
    assert result.may_have_missed == any("encoded again" in note for note in result.notes)
