"""The pages in a real browser: one browser for all tests of this file, as starting it takes seconds."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cdkit.embedded.pool import PoolServer
from cdkit.encoders import load_text_encoder
from tests.support.browser import Browser, chromium
from tests.support.photo_pool import PoolPicture, index_of
from tests.support.served import Running, serving

HOSTILE = "<script>window.stolen = 1</script><img src=x onerror='window.stolen = 2'> a red star \"'&amp;"
PROMPT = "a photo of a star"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def test_the_search_page(browser: Browser, service: Running, pictures: PoolServer) -> None:
    own = urlsplit(service.url).netloc
    browser.open(service.url)
    browser.wait(lambda: browser.all("#index option"))
    browser.press(PROMPT, "\n")
    browser.wait(lambda: len(browser.all("#results > li")) > 10)
    assert browser.text("#least-value") == "0.870"
    first = browser.text("#results > li")
    assert "star" in first
    assert "127.0.0.1" in first
    assert "1.0000" in first
    count = int(browser.text("#count").split()[0])
    assert browser.text("#status") == f"{count} shown of {count} captions."
    # The slider by keyboard: the count above it follows at once, the captions after it.
    from selenium.webdriver.common.keys import Keys

    browser.run("document.getElementById('least').focus()")
    browser.press(*[Keys.ARROW_LEFT] * 80)
    assert browser.text("#least-value") == "0.470"
    lower = int(browser.text("#count").split()[0])
    assert lower > count
    browser.wait(lambda: f"of {lower} captions" in browser.text("#status"))
    told = service.client.get("/search", params={"q": PROMPT, "min_similarity": 0.47, "limit": 1000}).json()
    assert abs(len(told["results"]) - lower) <= 1
    assert "--min-similarity 0.47" in browser.run("return document.getElementById('command').textContent")
    assert browser.logs() == ([], {own})
    browser.press("/")
    assert browser.run("return document.activeElement.id") == "q"
    # Pictures come only when they are asked for, and the browser asks nobody before.
    assert not browser.all("#results img")
    browser.one("#pictures").click()
    browser.wait(lambda: browser.run("return [...document.images].some((image) => image.naturalWidth > 0)"))
    assert browser.text("#least-value") == "0.470"
    assert browser.logs()[1] == {own, pictures.host}


def test_markup_in_captions_and_addresses_does_nothing(browser: Browser, tmp_path: Path) -> None:
    rows = [
        PoolPicture(HOSTILE, "javascript:alert(1)"),
        PoolPicture("a red star", "http://127.0.0.1:9/'><script>.png"),
    ]
    encoder = load_text_encoder("embedded", precision="fp32")
    with serving(index_of(tmp_path / "hostile", rows, encoder)) as running:
        browser.open(f"{running.url}?q=a+red+star&min_similarity=-1&pictures=on")
        browser.wait(lambda: len(browser.all("#results > li")) == 2)
        texts = [element.text for element in browser.all("#results > li")]
        assert any("<script>window.stolen = 1</script>" in text for text in texts)
        assert browser.run("return window.stolen") is None
        assert not browser.all("#results script, #results a[href^='javascript']")
        assert all("stolen" not in error for error in browser.logs()[0])


def test_the_page_fits_a_phone_and_a_wall(browser: Browser, service: Running) -> None:
    for width, height in ((360, 740), (3840, 2160)):
        browser.size(width, height)
        browser.open(f"{service.url}?q=a+star&min_similarity=0.5")
        browser.wait(lambda: len(browser.all("#results > li")) > 10)
        assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    browser.size(1280, 900)
    names = "return [...document.querySelectorAll('input, select, button')].filter((field) => "
    names += "field.checkVisibility() && !field.labels?.length && !field.textContent.trim())"
    assert browser.run(names) == []


@pytest.fixture
def front(tmp_path: Path, service: Running) -> Iterator[str]:
    """The page of clip-retrieval as its wheel carries it, served beside ours and told where we are."""
    try:
        files = importlib.metadata.files("clip-retrieval") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("clip-retrieval is not installed: pip install --no-deps clip-retrieval")
    index = next(Path(str(file.locate())) for file in files if str(file).endswith("front/build/index.html"))
    shutil.copytree(index.parent, tmp_path / "front")
    config = {"defaultBackend": service.url.rstrip("/"), "defaultIndex": "scenes"}
    (tmp_path / "front" / "config.json").write_text(json.dumps(config))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "front"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_the_page_of_clip_retrieval_works_with_our_service(browser: Browser, front: str, pictures: PoolServer) -> None:
    browser.open(f"{front}?query=a+photo+of+a+star")
    shadow = "document.querySelector('clip-front').shadowRoot"
    browser.wait(lambda: browser.run(f"return !!{shadow}?.getElementById('searchBar')"))
    browser.run(f"{shadow}.getElementById('textSearch').click()")
    shown = f"return [...{shadow}.querySelectorAll('img.pic')].filter((image) => image.naturalWidth > 0).length"
    browser.wait(lambda: browser.run(shown) > 5)
    captions = browser.run(f"return [...{shadow}.querySelectorAll('figcaption')].map((each) => each.textContent)")
    assert sum("star" in caption for caption in captions) > 5
    # Those that come with an id alone have their captions fetched when the reader scrolls.
    more = f"window.scrollTo(0, 1e6); return {shadow}.querySelectorAll('figcaption').length"
    browser.wait(lambda: browser.run(more) > 41)
