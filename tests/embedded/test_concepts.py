"""Held-out concepts: addressed by name, five photos each, a wrong name explained."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cdkit.core.errors import ConfigError
from cdkit.embedded.concepts import CONCEPTS, concept, concept_captions, concept_names, concept_photos, write_concept
from cdkit.pictures.reading import read_pictures


def test_there_are_concepts_of_both_sorts() -> None:
    sorts = [entry.novelty for entry in CONCEPTS]
    assert len(CONCEPTS) >= 6
    assert sorts.count("combination") >= 3
    assert {"colour", "texture", "shape"} <= set(sorts)
    assert concept("embedded:striped-star").category == "star"


@pytest.mark.parametrize("name", concept_names())
def test_five_different_photos(name: str) -> None:
    photos = concept_photos(name)
    assert len({photo.tobytes() for photo in photos}) == 5
    assert {photo.size for photo in photos} == {(256, 256)}


def test_photos_are_written_and_stay_the_same(tmp_path: Path) -> None:
    paths = write_concept("embedded:dotted-ball", tmp_path / "photos")
    assert [path.name for path in paths] == [f"dotted-ball-{index}.png" for index in range(1, 6)]
    captions = [path.with_suffix(".txt") for path in paths]
    assert sorted((tmp_path / "photos").iterdir()) == sorted([*paths, *captions])
    assert [path.read_text() for path in captions] == [f"{caption}\n" for caption in concept_captions()]
    written, shipped = (read_pictures(source).pictures for source in (tmp_path / "photos", "embedded:dotted-ball"))
    assert [photo.caption for photo in written] == [photo.caption for photo in shipped] == concept_captions()
    assert Image.open(paths[0]).convert("RGB").tobytes() == concept_photos("dotted-ball")[0].tobytes()


def test_an_unknown_name_lists_those_that_exist() -> None:
    with pytest.raises(ConfigError) as caught:
        concept("embedded:striped-sta")
    assert "striped-sta" in caught.value.message
    assert "Did you mean embedded:striped-star?" in caught.value.hint
    assert all(name in caught.value.hint for name in concept_names())
