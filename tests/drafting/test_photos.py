"""What init sees of photos: what is there, and nothing that it cannot know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdkit.core.errors import ConfigError, InputError
from cdkit.drafting.photos import MOST_LOOKED_AT, class_word, survey_photos


def write_photo(path: Path, seed: int, size: tuple[int, int] = (96, 64)) -> Path:
    """A picture like no other: coarse patches of random colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    patches = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(patches).resize(size, Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photos and a double in a folder whose name has spaces and umlauts, one with a caption."""
    folder = tmp_path / "meine Föhre"
    for number in range(4):
        write_photo(folder / f"{number}.png", number, (96 + 32 * number, 64 + 32 * number))
    Image.open(folder / "0.png").convert("RGB").save(folder / "0-again.jpg", quality=60)
    (folder / "1.txt").write_text("a <new1> pine at night")
    (folder / "notes.doc").write_text("no picture")
    return folder


def test_number_sizes_doubles_and_captions(photos: Path) -> None:
    seen = survey_photos(str(photos))
    assert seen.number == seen.looked_at == len(seen.sizes) == 5
    assert seen.sentence() == "5 photos, 96 × 64 to 192 × 160 pixels, 1 with a caption"
    assert [set(names) for names in seen.alike] == [{"0-again.jpg", "0.png"}]
    assert (seen.captioned, seen.others, seen.shortest) == (1, 1, 64)
    seen.check()
    said = "\n".join(seen.notes(128))
    assert "0-again.jpg, 0.png show nearly the same" in said
    assert "3 of 5 photos are smaller than the base model's 128 pixels" in said
    assert "1 other file(s)" in said
    assert "few" not in said
    assert seen.as_json()["alike"] == [list(seen.alike[0])]


def test_few_many_and_thousands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        write_photo(tmp_path / "few" / f"{number}.png", number)
    assert "3 photos are few" in "\n".join(survey_photos(str(tmp_path / "few")).notes(None))
    for number in range(22):
        write_photo(tmp_path / "many" / f"{number}.png", number)
    assert "22 photos are many" in "\n".join(survey_photos(str(tmp_path / "many")).notes(None))
    monkeypatch.setattr("cdkit.drafting.photos.MOST_LOOKED_AT", 5)
    seen = survey_photos(str(tmp_path / "many"))
    assert (seen.number, len(seen.sizes)) == (22, 5)
    assert "only the first 5 of 22" in "\n".join(seen.notes(None))
    assert MOST_LOOKED_AT >= 100


def test_what_training_would_refuse_is_refused_with_every_name(tmp_path: Path) -> None:
    write_photo(tmp_path / "photos" / "good.png", 1)
    with pytest.raises(InputError, match="only one photo"):
        survey_photos(str(tmp_path / "photos")).check()
    for name in ("cut.jpg", "empty.png"):
        (tmp_path / "photos" / name).write_bytes(b"\xff\xd8\xff" if name == "cut.jpg" else b"")
    seen = survey_photos(str(tmp_path / "photos"))
    assert len(seen.damaged) == 2
    with pytest.raises(InputError, match=r"(?s)cut\.jpg.*empty\.png"):
        seen.check()
    with pytest.raises(InputError, match="does not exist"):
        survey_photos(str(tmp_path / "gone"))


def test_only_embedded_concepts_come_with_their_word() -> None:
    assert class_word("embedded:checkered-mug") == "mug"
    assert class_word("photos/dog") == ""
    with pytest.raises(ConfigError):
        class_word("embedded:nothing")
