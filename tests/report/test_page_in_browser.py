"""The page in a real browser: on a phone and on a desk, light and dark, printed, and without a network."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from cdkit.core.config import parse_config
from cdkit.execute import execute
from cdkit.report.config import ReportConfig
from tests.support.browser import Browser, chromium
from tests.support.pretend_run import pretend_run

PHONE, DESK = 360, 1280
LUMINANCE = """
const light = (text) => {
  const parts = text.match(/[\\d.]+/g).slice(0, 3).map((part) => { const c = part / 255;
    return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const paper = light(getComputedStyle(document.body).backgroundColor);
return arguments[0].map((selector) => {
  const found = document.querySelector(selector);
  if (!found) return [selector, 0];
  const ink = light(getComputedStyle(found).color);
  return [selector, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)];
});
"""
WIDER = """
const wide = document.documentElement.clientWidth;
return [...document.querySelectorAll('body *')].filter((found) => {
  if (found.closest('.scroll, .strip, pre, figure, details:not([open])')) return false;
  return found.getBoundingClientRect().right > wide + 1;
}).map((found) => found.outerHTML.slice(0, 120));
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    long = (
        "a photo of a star, "
        + "and one more word of a prompt that goes on and on, " * 4
        + "under averylongwordthatdoesnotbreak" * 3
    )
    run = pretend_run(
        tmp_path_factory.mktemp("runs") / "one",
        seeds=6,
        steps=1,
        prompts=["a photo of a star", "a photo of a <new1> star", long],
    )
    config = parse_config(ReportConfig, {"run_folder": str(run)})
    return (execute("report", config, run / "page", force=True).out / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_nothing_but_tables_scrolls_sideways(browser: Browser, page: str, width: int, dark: bool) -> None:
    browser.size(width, 800)
    browser.dark(dark)
    browser.open(page)
    assert browser.run(WIDER) == []
    assert browser.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    scrolling = (
        "return [...document.querySelectorAll('.scroll')].filter((box) => box.scrollWidth > box.clientWidth).length"
    )
    assert (browser.run(scrolling) > 3) is (width == PHONE)
    # What scrolls can be reached by keyboard, and says what it is.
    assert browser.run(
        "return [...document.querySelectorAll('.scroll')].every((b) => b.tabIndex === 0 && b.ariaLabel)"
    )
    selectors = ["h1", "p", ".caption", "nav a", "td.num", "td.says", "th"]
    assert [(selector, ratio) for selector, ratio in browser.run(LUMINANCE, selectors) if ratio < 4.5] == []
    errors, hosts = browser.logs()
    assert (errors, hosts) == ([], set())


def test_the_contents_lead_to_their_parts_and_sheets_unfold(browser: Browser, page: str) -> None:
    browser.size(PHONE, 800)
    browser.open(page)
    top = "return document.querySelector(arguments[0]).getBoundingClientRect().top"
    for link in browser.run("return [...document.querySelectorAll('nav a')].map((link) => link.hash)"):
        browser.run("document.querySelector(`nav a[href='${arguments[0]}']`).click()", link)
        browser.wait(lambda link=link: abs(browser.run(top, link)) < 760)
    shown = "return document.querySelector('.sheet img').checkVisibility()"
    assert not browser.run(shown)
    browser.run("document.querySelector('.sheet').closest('details').querySelector('summary').click()")
    assert browser.run(shown)


def test_it_prints_on_paper(browser: Browser, page: str) -> None:
    browser.size(DESK, 800)
    browser.dark(True)
    browser.open(page)
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert len(base64.b64decode(printed["data"])) > 20_000
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    paper = browser.run("return getComputedStyle(document.documentElement).getPropertyValue('--paper').trim()")
    ink = browser.run("return getComputedStyle(document.body).color")
    folded = browser.run("return document.querySelector('.sheet').getBoundingClientRect().height")
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert (paper, ink) == ("#fff", "rgb(0, 0, 0)")
    assert folded > 100, "what is folded on the screen is on paper"
