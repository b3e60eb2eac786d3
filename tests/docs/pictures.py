"""Takes the pictures of the pages for docs/images: `python -m tests.docs.pictures` (needs Chromium)."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from cdkit.embedded.pool import PoolServer
from cdkit.encoders import load_text_encoder
from cdkit.serving.access import Access
from cdkit.serving.review import DecisionFile, Review
from cdkit.serving.review_set import read_review_set
from cdkit.serving.server import bind
from tests.support.browser import Browser, chromium
from tests.support.made_sets import made_set
from tests.support.served import Running, pool_index, serving

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SIZE = (1200, 860)
# Of a palette: the pages have few colours, and a picture in the docs few bytes.
COLOURS = 96
TOKEN = "shown"


def take(browser: Browser, name: str) -> None:
    """Save what is on the screen as a small PNG."""
    screen = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    screen.quantize(COLOURS, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)


def search_page(browser: Browser, folder: Path, server: PoolServer) -> None:
    index = pool_index(folder / "scenes", server.host, load_text_encoder("embedded", precision="fp32"))
    with serving(index) as running:
        browser.open(f"{running.url}?q=a+photo+of+a+star&min_similarity=0.6&pictures=on")
        browser.wait(lambda: len(browser.all("#results img")) > 10)
        loaded = "return [...document.images].slice(0, 10).every((image) => image.complete)"
        browser.wait(lambda: browser.run(loaded))
        take(browser, "search-page.png")


def review_page(browser: Browser, folder: Path) -> None:
    sets = made_set(folder / "star", 36)
    address = bind("127.0.0.1", 0)
    review = Review(read_review_set(sets), DecisionFile(sets / "decisions.parquet"))
    with Running(review.app(Access(address.port, token=TOKEN, change_token=TOKEN)), address):
        browser.open(address.url(TOKEN))
        browser.wait(lambda: len(browser.all("#wall .tile")) == 36)
        for key in ("000002", "000005", "000008"):
            browser.run(f"document.querySelector('[data-key=\"{key}\"]').focus()")
            browser.press("x")
            browser.wait(lambda key=key: browser.all(f"[data-key='{key}'][aria-pressed='true']"))
        browser.run("document.querySelector('[data-key=\"000009\"]').focus(); scrollTo(0, 0)")
        browser.wait(lambda: browser.run("return [...document.images].every((image) => image.complete)"))
        take(browser, "review-page.png")


def main() -> None:
    with chromium() as browser, PoolServer() as server, tempfile.TemporaryDirectory() as folder:
        browser.size(*SIZE)
        search_page(browser, Path(folder), server)
        review_page(browser, Path(folder))


if __name__ == "__main__":
    main()
