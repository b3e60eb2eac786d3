"""Matching photos: each takes the captions nearest to it in turn; the manifest says which image is whose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit import encoders
from cdkit.embedded.pool import DEFAULT_HOST
from cdkit.encoders import load_text_encoder
from cdkit.index.caption_index import CaptionIndex, open_index
from cdkit.retrieval.candidates import CandidateSettings, read_candidates, write_candidates
from cdkit.retrieval.matching import MatchedPhoto, MatchedPhotos, find_matching, taken_in_turn
from tests.retrieval.conftest import ENCODER, retrieve
from tests.support import material
from tests.support.hostile_server import HostileServer
from tests.support.photo_pool import PoolPicture, index_of, picture, real_photos
from tests.support.regularization_sets import read_regularization_set
from tests.support.served import pool_index

PLACES = ("beach", "snow", "kitchen", "forest")


@pytest.fixture
def _hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "load_text_encoder", lambda *_, **__: ENCODER)


def captioned(folder: Path, *captions: str) -> Path:
    folder.mkdir()
    for number, caption in enumerate(captions):
        (folder / f"{number}.jpg").write_bytes(picture(10_000 + number))
        if caption:
            (folder / f"{number}.txt").write_text(caption)
    return folder


def place_rows(server: HostileServer, each: int) -> list[PoolPicture]:
    rows = []
    for number in range(each * len(PLACES)):
        server.files[f"/file/{number}"] = picture(number)
        caption = f"a photo of a dog on the {PLACES[number % len(PLACES)]} number {number}"
        rows.append(PoolPicture(caption, server.url(f"file/{number}")))
    return rows


def matched_of(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "manifest.json").read_text())["details"]["matched"]
    return found


@given(st.integers(0, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_columns_take_turns_and_a_row_is_taken_once(rows: int, columns: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    similarities, allowed = draw.random((rows, columns)).round(1), draw.random((rows, columns)) < 0.7
    pairs = taken_in_turn(similarities, allowed)
    taken = [row for row, _ in pairs]
    assert len(taken) == len(set(taken))
    assert all(allowed[row, column] for row, column in pairs)
    # Whatever somebody may have is taken by somebody, and the nearest that is left first.
    assert set(taken) == set(np.flatnonzero(allowed.any(axis=1)).tolist())
    for turn, (row, column) in enumerate(pairs):
        left = [other for other in range(rows) if allowed[other, column] and other not in taken[:turn]]
        assert similarities[row, column] == max(similarities[other, column] for other in left)
    if rows and allowed.all() and rows >= columns:
        assert [column for _, column in pairs[:columns]] == list(range(columns))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> CaptionIndex:
    captions = [f"a photo of a dog on the {place} number {number}" for place in PLACES for number in range(10)]
    rows = [PoolPicture(text, f"http://a.test/{number}") for number, text in enumerate([*captions, "a red boat"])]
    return open_index(index_of(tmp_path_factory.mktemp("index") / "made", rows, ENCODER), ENCODER)


def photos_of(*captions: str) -> MatchedPhotos:
    photos = [MatchedPhoto(f"{number}.jpg", caption) for number, caption in enumerate(captions)]
    return MatchedPhotos(photos, ENCODER.encode(captions))


def test_each_photo_has_its_share_of_captions_like_it(index: CaptionIndex, tmp_path: Path) -> None:
    photos = photos_of("a dog on the snow", "a dog on the beach")
    found = find_matching(index, photos, [], 10, CandidateSettings(min_similarity=0.6))
    first = found.candidates[:10]
    assert [candidate.photo for candidate in first] == ["0.jpg", "1.jpg"] * 5
    for candidate in first:
        assert ("snow" if candidate.photo == "0.jpg" else "beach") in candidate.caption
        assert candidate.query == f"a dog on the {'snow' if candidate.photo == '0.jpg' else 'beach'}"
        assert candidate.similarity == candidate.photo_similarity >= 0.6
    write_candidates(tmp_path, found, "mark")
    assert read_candidates(tmp_path, "mark") == found


def test_a_prompt_says_what_captions_must_be_like_and_photos_which_come_first(index: CaptionIndex) -> None:
    photos = photos_of("a red boat on the snow", "a kitchen")
    found = find_matching(index, photos, ["a photo of a dog"], 10, CandidateSettings(min_similarity=0.6))
    assert all("dog" in candidate.caption and candidate.query == "a photo of a dog" for candidate in found.candidates)
    assert [candidate.photo for candidate in found.candidates[:4]] == ["0.jpg", "1.jpg"] * 2
    assert "snow" in found.candidates[0].caption
    assert "kitchen" in found.candidates[1].caption
    assert len({candidate.caption_id for candidate in found.candidates}) == len(found.candidates)
    nothing = find_matching(index, photos, ["an empty street at night"], 10, CandidateSettings(min_similarity=0.95))
    assert nothing.candidates == []


@pytest.mark.usefixtures("_hashing")
def test_the_manifest_says_which_image_stands_for_which_photo(
    tmp_path: Path, server: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    index = index_of(tmp_path / "index", place_rows(server, 8), ENCODER)
    folder = captioned(
        tmp_path / "photos mit ö", "a photo of a <new1> dog on the snow", "a photo of a dog on the beach", "<new1>"
    )
    (folder / "2.txt").write_text("a photo of a dog on the snow")
    out = tmp_path / "set"
    command = (index, "--match", folder, "--count", 12, "--allow-host", server.place)
    code, data, _ = retrieve(capsys, *command, "--out", out)
    assert (code, data["accepted"]) == (0, 12)
    images = {image.key: image.caption for image in read_regularization_set(out)}
    matched = matched_of(out)
    assert [entry["photo"] for entry in matched] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [entry["caption"] for entry in matched[::2]] == ["a photo of a dog on the snow"] * 2
    assert sorted(key for entry in matched for key in entry["images"]) == sorted(images)
    assert [len(entry["images"]) for entry in matched] == [4, 4, 4]
    for entry, place in zip(matched, ("snow", "beach", "snow"), strict=True):
        assert all(place in images[key] for key in entry["images"])
        assert entry["nearest"] in [images[key] for key in entry["images"]]

    code, data, _ = retrieve(capsys, *command, "a cat in a box", "--min-similarity", 0.95, "--out", tmp_path / "none")
    assert (code, data["accepted"]) == (5, 0)
    assert [entry["images"] for entry in matched_of(tmp_path / "none")] == [[], [], []]


@pytest.mark.usefixtures("_hashing")
def test_a_folder_of_its_own_is_matched_by_its_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = index_of(tmp_path / "index", [PoolPicture("a red boat", "http://a.test/1")], ENCODER)
    places = [f"a photo of a dog on the {place}" for place in PLACES]
    mine = captioned(tmp_path / "mine", *places)
    photos = captioned(tmp_path / "photos", "a photo of a dog on the snow", "a photo of a dog on the forest")
    out = tmp_path / "set"
    command = (index, "--match", photos, "--images", mine, "--count", 2, "--min-similarity", 0.9, "--out", out)
    code, data, _ = retrieve(capsys, *command)
    assert (code, data["accepted"]) == (0, 2)
    assert [image.caption for image in read_regularization_set(out)] == [places[1], places[3]]


def test_photos_without_captions_are_matched_as_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = pool_index(tmp_path / "index", DEFAULT_HOST, load_text_encoder("embedded"), rows=600)
    out = tmp_path / "set"
    command = (index, "a photo of a star", "--match", "embedded:striped-star", "--count", 8, "--min-similarity", 0.5)
    code, data, words = retrieve(capsys, *command, "--out", out)
    assert code in (0, 5), words
    matched = matched_of(out)
    assert len(matched) > 1
    assert all(entry["caption"] is None for entry in matched)
    assert sum(len(entry["images"]) for entry in matched) == data["accepted"] > len(matched)
    assert all("star" in image.caption for image in read_regularization_set(out))


@pytest.mark.usefixtures("_hashing")
def test_photos_that_cannot_be_matched_are_named(
    tmp_path: Path, server: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    index = index_of(tmp_path / "index", [PoolPicture("a dog", server.url("ok/1"))], ENCODER)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("a dog")
    bare = captioned(tmp_path / "bare", "", "a dog", "")
    for arguments, code, message in (
        ((), 2, "give at least one, or photos to match"),
        (("--match", tmp_path / "nowhere"), 3, "does not exist"),
        (("--match", tmp_path / "empty"), 3, "is empty"),
        (("--match", tmp_path / "texts"), 3, "no photos to match"),
        (("--match", bare), 2, "2 of the photos"),
        (("a dog", "--match", bare), 3, "0.jpg, 2.jpg. The encoder 'hashing:64' reads no pictures"),
        (("a dog", "--match", bare, "--select", "spread"), 2, "give one of them"),
        (("--match", bare, "--fill", "generated"), 2, "fill draws the prompts"),
    ):
        found, _, words = retrieve(capsys, index, *arguments, "--out", tmp_path / "set")
        assert found == code, (arguments, words)
        assert message in words
    assert not server.hits


def test_pictures_that_do_not_decode_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = pool_index(tmp_path / "index", DEFAULT_HOST, load_text_encoder("embedded"), rows=50)
    folder = captioned(tmp_path / "photos", "", "")
    (folder / "1.jpg").write_bytes(picture(1)[:-300])
    code, _, words = retrieve(capsys, index, "a star", "--match", folder, "--out", tmp_path / "set")
    assert code == 3
    assert "1.jpg" in words
    assert "0.jpg" not in words


@pytest.mark.usefixtures("_hashing")
def test_of_3000_photos_as_many_as_images_are_matched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [PoolPicture(f"a photo of a dog number {number}", f"http://a.test/{number}") for number in range(60)]
    index = index_of(tmp_path / "index", rows, ENCODER)
    folder, content = tmp_path / "photos", picture(1)
    folder.mkdir()
    for number in range(3000):
        (folder / f"{number:04d}.jpg").write_bytes(content)
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{n:04d}.jpg", "text": f"a dog number {n}"}) + "\n" for n in range(3000))
    )
    images = captioned(tmp_path / "images", *[row.caption for row in rows[:30]])
    out = tmp_path / "set"
    command = (index, "--match", folder, "--images", images, "--count", 20, "--out", out, "--min-side", 16)
    code, data, words = retrieve(capsys, *command)
    assert (code, data["accepted"]) == (0, 20)
    assert "3,000 photos for 20 images" in words
    matched = matched_of(out)
    assert [entry["photo"] for entry in matched] == [f"{n * 150:04d}.jpg" for n in range(20)]


class Blots(dict[str, bytes]):
    """A picture for every number that is asked for, drawn when it is."""

    def get(self, key: str, default: Any = None) -> Any:
        return picture(int(key.rpartition("/")[2]))


@pytest.mark.real
@pytest.mark.usefixtures("_hashing")
def test_real_photos_choose_200_of_real_captions(
    tmp_path: Path, server: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = pq.read_table(material.path("captions/coco_val2017_captions.parquet"), columns=["TEXT"])["TEXT"]
    server.files = Blots()
    rows = [
        PoolPicture(caption, server.url(f"file/{number}"))
        for number, caption in enumerate(captions.to_pylist())
        if number % 10 == 0 or "dog" in caption.lower() or "vase" in caption.lower()
    ]
    index = index_of(tmp_path / "index", rows, ENCODER)
    for name in ("dog", "vase"):
        chosen = [photo for photo in real_photos() if any(name in text.lower().split() for text in photo.captions)]
        own = [photo for photo in chosen if photo.dreambooth][:2] + [photo for photo in chosen if not photo.category]
        folder = tmp_path / name
        folder.mkdir()
        for photo in own[:6]:
            (folder / photo.path.name).write_bytes(photo.path.read_bytes())
            caption = next(text for text in photo.captions if name in text.lower().split())
            (folder / photo.path.with_suffix(".txt").name).write_text(caption)
        out = tmp_path / f"set {name}"
        command = (index, name, "--match", folder, "--exclude-like", folder, "--min-similarity", 0.25)
        code, data, words = retrieve(capsys, *command, "--allow-host", server.place, "--out", out)
        assert (code, data["accepted"]) == (0, 200), words
        shares = [len(entry["images"]) for entry in matched_of(out)]
        assert sum(shares) == 200
        assert max(shares) - min(shares) <= len(shares)
        naming = sum(name in image.caption.lower() for image in read_regularization_set(out))
        # Words by chance are what an encoder without weights knows; still it is no draw from the pool.
        assert naming / 200 > 2 * sum(name in row.caption.lower() for row in rows) / len(rows)
