"""One copy of each tiny model per session: building them is most of the tests' time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import tiny_models

# What cleaning changes: entities, mojibake, curly quotes, escapes that a second cleaning would undo further, blanks.
UNCLEAN = (
    "Jack&#39;s red star",
    "Caf&eacute; &amp; Bar &ndash; M&uuml;nchen",
    "a schÃ¶ner Hund, doesnâ€™t bark",
    "\u201cA Dog\u2019s Life\u201d \u2013 \u2018poster\u2019",
    "<3 &amp;amp;amp;hearts; and &amp;lt;b&amp;gt;",
    "&amp;amp;quot;quoted&amp;amp;quot;",
    "  A\tRED \u00a0 Dog\n\u3000 near\u200b the\x0bsea ",
    "\ufb01re truck, ｆｕｌｌ width, e\u0301tude",
)
# And ragged lengths, longer than the context, empty, emoji, special words, repeated captions.
CAPTIONS = (
    *UNCLEAN,
    "",
    "a",
    "a dog",
    "a photo of a dog on the beach, 2019!!",
    "🐶🎉 ünïcödé don't – l'été “quoted”",
    "<end_of_text> in the middle <start_of_text>",
    "<|endoftext|> is text to open_clip",
    "word " * 200,
    "a dog",
    "x" * 300,
    "日本語のキャプション",
    " ".join(str(number) for number in range(36)),
)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def open_clip_model(models: Path) -> Path:
    return tiny_models.open_clip_folder(models / "open_clip")


@pytest.fixture(scope="session")
def clip_model(models: Path) -> Path:
    return tiny_models.clip_folder(models / "clip")


@pytest.fixture(scope="session")
def clip_text_model(models: Path) -> Path:
    return tiny_models.clip_text_folder(models / "clip_text")


@pytest.fixture(scope="session")
def siglip_model(models: Path) -> Path:
    return tiny_models.siglip_folder(models / "siglip")
