"""Licences in pools' words, by one short name each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.core.licences import FREE, LICENCES, licence_code


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://creativecommons.org/publicdomain/zero/1.0/", "cc0"),
        ("http://creativecommons.org/publicdomain/mark/1.0/deed.en", "public-domain"),
        ("https://creativecommons.org/licenses/by-nc-sa/2.0/", "cc-by-nc-sa"),
        ("https://creativecommons.org/licenses/by/3.0/us/legalcode", "cc-by"),
        ("https://www.flickr.com/commons/usage/", "no-known-copyright"),
        ("CC BY 4.0", "cc-by"),
        ("cc-by-sa-2.0", "cc-by-sa"),
        ("CC BY-NC-ND 4.0 International", "cc-by-nc-nd"),
        ("BY-NC", "cc-by-nc"),
        ("CC0 1.0 Universal", "cc0"),
        ("cc0", "cc0"),
        ("CC-Zero", "cc0"),
        ("Public Domain Dedication (CC0)", "cc0"),
        ("Public Domain Mark 1.0", "public-domain"),
        ("PDM", "public-domain"),
        ("public domain", "public-domain"),
        ("No known copyright restrictions", "no-known-copyright"),
        ("United States Government Work", "us-government"),
        # Flickr's, as COCO's images have them.
        ("Attribution License", "cc-by"),
        ("Attribution-ShareAlike License", "cc-by-sa"),
        ("Attribution-NoDerivs License", "cc-by-nd"),
        ("Attribution-NonCommercial License", "cc-by-nc"),
        ("Attribution-NonCommercial-ShareAlike License", "cc-by-nc-sa"),
        ("Attribution-NonCommercial-NoDerivs License", "cc-by-nc-nd"),
        ("Attribution License http://creativecommons.org/licenses/by/2.0/", "cc-by"),
        ("CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)", "cc-by-sa"),
    ],
)
def test_wordings_of_pools(text: str, expected: str) -> None:
    assert licence_code(text) == licence_code(f"  {text.upper()} ") == expected


@pytest.mark.parametrize(
    "text",
    [
        "CC BY http://creativecommons.org/licenses/by-nc/2.0/",
        *(None, "", "?", "4", "free", "by", "not public domain", "CC0 except the logo", "All rights reserved"),
        *("cc-by-sa-nd", "https://example.org/creativecommons.org/publicdomain/zero/1.0/", "attribution required"),
        *(
            "https://creativecommons.org.evil.test/publicdomain/zero/1.0/",
            "CC BY, see terms",
            "editorial use only",
        ),
    ],
)
def test_what_is_not_known_in_full_is_unknown(text: str | None) -> None:
    assert licence_code(text) is None


@given(st.text(max_size=60))
def test_any_text_has_a_name_of_the_list_or_none(text: str) -> None:
    assert licence_code(text) in (None, *LICENCES)


def test_every_name_is_its_own_name_and_what_forbids_is_not_free() -> None:
    assert [licence_code(name) for name in LICENCES] == list(LICENCES)
    assert {name for name in LICENCES if "-nc" in name or "-nd" in name} == set(LICENCES) - FREE
