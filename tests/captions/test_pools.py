"""Which column means what: presets, detection, and the user's word."""

from __future__ import annotations

import pytest

from cdkit.captions.pools import find_layout, headerless_preset, preset_named
from cdkit.core.errors import ConfigError, InputError

LAION400M = ["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"]
RELAION = [
    *("url", "caption", "similarity", "hash", "pwatermark", "punsafe", "key", "status", "error_message"),
    *("width", "height", "original_width", "original_height", "exif", "md5"),
]
COYO = [
    *("id", "url", "text", "width", "height", "image_phash", "text_length", "clip_similarity_vitb32"),
    *("clip_similarity_vitl14", "nsfw_score_opennsfw2", "watermark_score"),
]
DATACOMP = ["uid", "url", "text", "original_width", "original_height", "clip_b32_similarity_score", "sha256"]
IMG2DATASET = [
    *("NSFW", "similarity", "caption", "url", "key", "status", "error_message", "width", "height"),
    *("original_width", "original_height", "exif", "sha256"),
]


def layout(
    names: list[str], pool: str | None = None, caption: str | None = None, url: str | None = None
) -> dict[str, str]:
    found = find_layout(names, pool=pool, caption_column=caption, url_column=url)
    return {"pool": found.pool, **{meaning: names[position] for meaning, (position,) in found.columns.items()}}


def test_sides_of_laion400m_are_swapped_only_when_it_is_named() -> None:
    detected = layout(LAION400M)
    assert (detected["pool"], detected["width"], detected["height"]) == ("laion2b", "WIDTH", "HEIGHT")
    named = layout(LAION400M, pool="laion400m")
    assert (named["pool"], named["width"], named["height"]) == ("laion400m", "HEIGHT", "WIDTH")
    assert named["nsfw"] == "NSFW"


def test_relaion_is_told_from_img2dataset_output() -> None:
    found = layout(RELAION)
    assert found["pool"] == "relaion"
    assert (found["width"], found["punsafe"], found["md5"]) == ("original_width", "punsafe", "md5")
    found = layout(IMG2DATASET)
    assert (found["pool"], found["nsfw"], found["similarity"]) == ("img2dataset", "NSFW", "similarity")


def test_coyo_and_datacomp() -> None:
    found = layout(COYO)
    assert (found["pool"], found["punsafe"], found["pwatermark"]) == (
        "coyo700m",
        "nsfw_score_opennsfw2",
        "watermark_score",
    )
    found = layout(DATACOMP)
    assert (found["pool"], found["similarity"], found["width"]) == (
        "datacomp",
        "clip_b32_similarity_score",
        "original_width",
    )


def test_own_tables_by_usual_names_and_by_the_users_word() -> None:
    assert layout(["id", "Text", "Image_URL"]) == {"pool": "own", "caption": "Text", "url": "Image_URL"}
    found = layout(["words", "where", "caption"], caption="words", url="WHERE")
    assert (found["caption"], found["url"]) == ("words", "where")


def test_mistakes_say_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"'captoin'; did you mean 'caption'\?"):
        layout(["caption", "url"], caption="captoin")
    with pytest.raises(InputError, match="no caption column found; the columns are a, b"):
        layout(["a", "b"])
    with pytest.raises(InputError, match="no column 'TEXT'"):
        layout(["url", "caption"], pool="laion400m")
    with pytest.raises(ConfigError, match="did you mean 'laion400m'"):
        preset_named("laion400")


def test_headerless_files_are_detected_only_when_unambiguous() -> None:
    captions_first = headerless_preset([["a dog", "http://x/1"], ["a cat", "https://x/2"]])
    urls_first = headerless_preset([["http://x/1", "a dog"]])
    assert captions_first is not None
    assert captions_first.name == "cc3m"
    assert urls_first is not None
    assert urls_first.name == "cc12m"
    assert headerless_preset([["caption", "url"], ["a dog", "http://x/1"]]) is None
    assert headerless_preset([["http://x/1", "http://x/2"]]) is None
    assert headerless_preset([["a", "b", "http://x/1"]]) is None
