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

from cdkit.embedded import default_threshold
from cdkit.embedded.pool import PoolServer
from cdkit.encoders import load_text_encoder
from cdkit.retrieval.decisions import read_decisions
from tests.serving.test_review import TOKEN, reviewing
from tests.support.browser import Browser, chromium
from tests.support.made_sets import made_set
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
    assert browser.text("#least-value") == f"{default_threshold():.3f}"
    best = service.client.get("/search", params={"q": PROMPT}).json()["results"][0]
    first = browser.text("#results > li")
    assert first.startswith(f"{best['caption']}\n{best['similarity']:.4f} {pictures.host}")
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
    command = "return document.getElementById('command').textContent"
    browser.wait(lambda: "--min-similarity 0.47" in browser.run(command))
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


@pytest.fixture(scope="module")
def star_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_set(tmp_path_factory.mktemp("sets") / "stars", captions=[HOSTILE])


def rejected(folder: Path) -> list[str]:
    return sorted(entry.key for entry in read_decisions(folder / "decisions.parquet").rejected.values())


def test_pictures_are_rejected_by_keyboard_and_stay_rejected(browser: Browser, star_set: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    with reviewing(star_set) as review:
        own = urlsplit(review.url).netloc
        browser.open(review.address.url(TOKEN))
        browser.wait(lambda: len(browser.all("#wall .tile")) == 12)
        browser.wait(lambda: browser.run("return document.images[0].naturalWidth > 0"))
        assert browser.run("return window.stolen") is None
        assert "<script>" in browser.text("#wall .tile")
        assert "0.990 · host-0.test · licence not known" in browser.text("#wall .tile")
        browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "x")
        browser.wait(lambda: "1 picture" in browser.text("#status").lower() or "rejected" in browser.text("#status"))
        browser.wait(lambda: browser.text("#tab-pictures") == "Pictures 11 of 12")
        assert rejected(star_set) == ["000001"]
        # A row further down, and there too.
        browser.press(Keys.ARROW_DOWN, "x")
        browser.wait(lambda: browser.text("#tab-pictures") == "Pictures 10 of 12")
        assert len(rejected(star_set)) == 2
        browser.press("z")
        browser.wait(lambda: browser.text("#tab-pictures") == "Pictures 11 of 12")
        assert rejected(star_set) == ["000001"]
        assert "--decisions" in browser.text("#command")
        browser.press(" ")
        browser.wait(lambda: browser.run("return document.getElementById('large').open"))
        browser.press(" ")
        browser.wait(lambda: not browser.run("return document.getElementById('large').open"))
        assert browser.logs() == ([], {own})
        browser.driver.refresh()
        browser.wait(lambda: browser.text("#tab-pictures") == "Pictures 11 of 12")
    # The server is gone; another one knows as much.
    with reviewing(star_set) as review:
        browser.open(review.address.url(TOKEN))
        pressed = browser.wait(lambda: browser.all(".tile[aria-pressed='true']"))
        assert [tile.get_attribute("data-key") for tile in pressed] == ["000001"]


def test_filters_views_and_groups(browser: Browser, star_set: Path) -> None:
    with reviewing(star_set) as review:
        browser.open(review.address.url(TOKEN))
        browser.wait(lambda: len(browser.all("#wall .tile")) == 12)
        browser.one("#filter-host").send_keys("host-1.test")
        browser.wait(lambda: len(browser.all("#wall .tile")) == 4)
        browser.one("#filter-low").send_keys("0.93")
        browser.wait(lambda: len(browser.all("#wall .tile")) == 2)
        browser.one("#tab-out").click()
        browser.one("#filter-host").send_keys("all")
        browser.one("#filter-low").clear()
        browser.wait(lambda: len(browser.all("#left-out tr")) == 3)
        browser.one("#filter-reason").send_keys("http_404")
        browser.wait(lambda: len(browser.all("#left-out tr")) == 2)
        browser.one("#tab-alike").click()
        groups = [
            [tile.get_attribute("data-key") for tile in group.find_elements("css selector", ".tile")]
            for group in browser.all("#view-alike .alike")
        ]
        assert any({"000000", "000010"} <= set(group) for group in groups)
        for width in (360, 3840):
            browser.size(width, 900)
            assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
        browser.size(1280, 900)
        assert browser.logs()[0] == []


def test_a_lasso_rejects_what_is_inside(browser: Browser, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    folder = made_set(tmp_path / "stars", captions=[HOSTILE])
    with reviewing(folder) as review:
        browser.open(review.address.url(TOKEN))
        browser.one("#tab-map").click()
        svg = browser.one("#map svg")
        browser.wait(lambda: len(browser.all("#map [data-key]")) == 12)
        width, height = svg.size["width"], svg.size["height"]
        browser.run("arguments[0].scrollIntoView()", svg)
        # The left half of the map.
        corners = [(-0.49, -0.49), (0, -0.49), (0, 0.49), (-0.49, 0.49)]
        points = [(int(x * width), int(y * height)) for x, y in corners]
        drag = ActionChains(browser.driver, duration=20).move_to_element_with_offset(svg, *points[0]).click_and_hold()
        for point in points[1:]:
            drag = drag.move_to_element_with_offset(svg, *point)
        drag.release().perform()
        told = {key: x for key, x, _ in review.client.get("/map", params={"token": TOKEN}).json()["points"]}
        inside = sorted(key for key, x in told.items() if x < 0.5)
        assert 0 < len(inside) < 12
        browser.wait(lambda: browser.text("#lasso-count") == f"{len(inside)} inside")
        assert len(browser.all("#lassoed .tile")) == len(inside)
        browser.one("#reject-lasso").click()
        browser.wait(lambda: browser.text("#tab-pictures") == f"Pictures {12 - len(inside)} of 12")
        assert rejected(folder) == inside
        browser.one("#undo").click()
        browser.wait(lambda: browser.text("#tab-pictures") == "Pictures 12 of 12")
        assert rejected(folder) == []
        assert browser.logs()[0] == []
