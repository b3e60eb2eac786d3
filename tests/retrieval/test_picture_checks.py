"""Checks by an image encoder, with the embedded CLIP on pictures of its world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from cdkit import encoders
from cdkit.core.protocols import ImageEncoder, SilentProgress, TextEncoder
from cdkit.embedded import concept_photos
from cdkit.embedded.pool import DEFAULT_HOST
from cdkit.encoders import load_text_encoder
from cdkit.encoders.image_towers import image_encoder_of
from cdkit.pictures.picture import FileContent, Picture, save_png
from cdkit.retrieval.config import RetrieveConfig
from cdkit.retrieval.picture_checks import PictureChecks, PictureRules, load_picture_checks
from tests.retrieval.conftest import ENCODER, rejected, retrieve
from tests.support.hostile_server import HostileServer
from tests.support.photo_pool import PoolPicture, index_of, picture
from tests.support.progress import Notes
from tests.support.regularization_sets import read_regularization_set
from tests.support.served import pool_index

STAR, MUG = "a photo of a star", "a photo of a mug"
Towers = tuple[TextEncoder, ImageEncoder]


@pytest.fixture(scope="module")
def towers() -> Towers:
    texts = load_text_encoder("embedded", device="cpu")
    return texts, image_encoder_of(texts, "cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A star, the same one a little brighter, another star, and a mug."""
    folder = tmp_path_factory.mktemp("files")
    stars, mugs = concept_photos("striped-star"), concept_photos("checkered-mug")
    pictures = {
        "star": stars[0],
        "brighter": ImageEnhance.Brightness(stars[0]).enhance(1.1),
        "other": stars[1],
        "mug": mugs[0],
    }
    for name, shown in pictures.items():
        save_png(shown, folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in pictures}


def checks_of(towers: Towers, files: dict[str, Path], *, photos: tuple[str, ...] = (), **rules: Any) -> PictureChecks:
    own = [Picture(name, name, FileContent(files[name])) for name in photos]
    checks = PictureChecks(PictureRules(**rules), *towers, SilentProgress(), own)
    checks.prepare([(MUG if name == "mug" else STAR, path) for name, path in files.items()])
    return checks


def test_pictures_are_taken_for_what_they_show(towers: Towers, files: dict[str, Path]) -> None:
    rejecting = checks_of(towers, files, reject_like=(STAR, "a photo of a tree"))
    requiring = checks_of(towers, files, require_like=(STAR,))
    for name, path in files.items():
        is_star = name != "mug"
        assert rejecting.reason("whatever it says", path) == ("reject_like" if is_star else None)
        assert requiring.reason("whatever it says", path) == (None if is_star else "require_like")
    # A margin that nothing reaches rejects nothing, and lets nothing in.
    assert checks_of(towers, files, reject_like=(STAR,), like_margin=1.0).reason(STAR, files["star"]) is None
    assert checks_of(towers, files, require_like=(STAR,), like_margin=1.0).reason(STAR, files["star"]) is not None
    assert rejecting.as_json()["neutral"] == ("a picture",)


def test_a_picture_must_be_what_its_caption_says(towers: Towers, files: dict[str, Path]) -> None:
    checks = checks_of(towers, files, image_text_min=0.0)
    fitting, other = checks.similarity(MUG, files["mug"]), checks.similarity(STAR, files["mug"])
    assert fitting > other
    limit = (fitting + other) / 2
    strict = checks_of(towers, files, image_text_min=limit)
    assert strict.reason(MUG, files["mug"]) is None
    assert strict.reason(STAR, files["mug"]) == "dissimilar"


def test_what_shows_the_same_comes_in_once_and_photos_never(towers: Towers, files: dict[str, Path]) -> None:
    star, brighter, mug = (checks_of(towers, files).vector(files[name]) for name in ("star", "brighter", "mug"))
    limit = float((star @ brighter + star @ mug) / 2)
    assert star @ mug < limit < star @ brighter
    checks = checks_of(towers, files, semantic_duplicates=limit)
    walk = checks.duplicates()
    assert walk.reason(files["star"]) is None
    walk.add(files["star"])
    assert walk.reason(files["brighter"]) == "semantic_duplicate"
    assert walk.reason(files["mug"]) is None
    # Another walk knows nothing of the first.
    assert checks.duplicates().reason(files["brighter"]) is None
    kept_out = checks_of(towers, files, photos=("star",), semantic_duplicates=limit).duplicates()
    assert kept_out.reason(files["brighter"]) == "semantic_target"
    assert kept_out.reason(files["mug"]) is None


def test_what_is_embedded_beside_a_picture_changes_no_bit(
    towers: Towers, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDKIT_CACHE", str(tmp_path / "one"))
    together = checks_of(towers, files, image_text_min=0.0)
    monkeypatch.setenv("CDKIT_CACHE", str(tmp_path / "other"))
    alone = PictureChecks(PictureRules(image_text_min=0.0), *towers, SilentProgress())
    for path in reversed(files.values()):
        alone.prepare([(STAR, path)])
        np.testing.assert_array_equal(alone.vector(path), together.vector(path))


def test_pixels_are_judged_for_safety_where_an_encoder_is_named() -> None:
    def judges(**settings: Any) -> bool:
        return PictureRules.of(RetrieveConfig(index="i", prompts=["a dog"], **settings)).nsfw

    assert not judges()
    assert judges(image_encoder="open_clip:ViT-L-14/openai")
    assert not judges(image_encoder="open_clip:ViT-L-14/openai", nsfw_pictures=False)
    assert judges(nsfw_pictures=True)


def test_an_encoder_of_drawings_says_that_it_cannot_judge_photos(towers: Towers) -> None:
    def notes(**settings: Any) -> list[str]:
        progress = Notes()
        load_picture_checks(RetrieveConfig(index="i", prompts=["a dog"], **settings), towers[0], progress)
        return progress.notes

    assert "--no-nsfw-pictures" in " ".join(notes(nsfw_pictures=True))
    assert notes(image_text_min=0.1) == []


def test_every_check_is_a_reason_in_the_funnel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = pool_index(tmp_path / "index", DEFAULT_HOST, load_text_encoder("embedded"), rows=900)
    common = (index, STAR, "--count", 12, "--min-similarity", 0.4, "--min-side", 16)
    checks = ("--semantic-duplicates", 0.3, "--require-like", STAR, "--reject-like", "a photo of a heart")
    code, data, words = retrieve(capsys, *common, *checks, "--image-text-min", 0.3, "--out", tmp_path / "checked")
    assert code in (0, 5), words
    assert "semantic_duplicate" in data["rejected"]
    assert data["rejected"].keys() <= {
        *("semantic_duplicate", "reject_like", "require_like", "dissimilar"),
        *("near_duplicate", "placeholder", "http_404", "blank"),
    }
    details = json.loads((tmp_path / "checked" / "manifest.json").read_text())["details"]
    stated = details["picture_checks"]
    assert (stated["encoder"], stated["like_margin"], stated["require_like"]) == ("embedded", 0.02, [STAR])
    assert {row["reason"] for row in rejected(tmp_path / "checked")} == data["rejected"].keys()
    kept = {image.key for image in read_regularization_set(tmp_path / "checked")}
    assert len(kept) == data["accepted"]


def test_blurred_flat_and_text_heavy_pictures_are_left_out(
    tmp_path: Path, server: HostileServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.pictures.test_decoding import saved
    from tests.pictures.test_measures import page, placeholder

    monkeypatch.setattr(encoders, "load_text_encoder", lambda *_, **__: ENCODER)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    contents = {
        "flat": saved(placeholder(), "PNG"),
        "text_heavy": saved(page(20), "PNG"),
        "blurred": picture(3, size=(600, 500)),
        "good": saved(Image.fromarray(noise), "PNG"),
    }
    rows = []
    for name, content in contents.items():
        server.files[f"/file/{name}"] = content
        rows.append(PoolPicture(f"a photo of a dog {name}", server.url(f"file/{name}")))
    index = index_of(tmp_path / "index", rows, ENCODER)
    limits = ("--min-sharpness", 50, "--max-flat", 0.95, "--max-text", 0.15)
    command = (index, "a photo of a dog", "--allow-host", server.place, "--count", 4)
    code, data, _ = retrieve(capsys, *command, *limits, "--out", tmp_path / "set")
    assert (code, data["accepted"]) == (5, 1)
    assert data["rejected"] == {"flat": 1, "text_heavy": 1, "blurred": 1}
    assert retrieve(capsys, *command, "--out", tmp_path / "all")[1]["accepted"] == 4

    code, _, words = retrieve(capsys, *command, "--image-text-min", 0.2, "--out", tmp_path / "none")
    assert code == 3
    assert "'hashing:64' reads no pictures" in words
    code, _, words = retrieve(capsys, *command, "--reject-like", " ", "--out", tmp_path / "none")
    assert code == 2
    assert "no text may be empty" in words
