"""The page of a run: it says what is going on, loads itself anew until the end, and looks right in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from cdkit.core.errors import InputError
from cdkit.pipeline.live_page import RunPage, headline
from cdkit.pipeline.pace import TimeLeft
from cdkit.pipeline.plan import plan
from cdkit.pipeline.runner import run
from cdkit.pipeline.spec import Pipeline, load
from cdkit.pipeline.watch import RunStatus, StageStatus
from cdkit.training.live_page import LIVE_NAME
from tests.support.browser import Browser, chromium
from tests.support.progress import Notes

pytestmark = pytest.mark.usefixtures("adding")
CHAIN = """
name: chain
stages:
  a: {run: adding}
  a-stage-with-a-long-name: {run: adding, source: a, numbers: []}
  tuned: {run: train, concepts: {star: "embedded:striped-star"}}
  drawn: {run: sample, deltas: [tuned], prompts: [a star]}
"""
METRICS = "step,loss,target_loss,regularization_loss,seconds\n1,0.5,0.6,0.4,1.0\n2,0.4,0.5,0.3,2.0\n3,0.3"


def chain(folder: Path, text: str = CHAIN) -> Pipeline:
    path = folder / "chain.yaml"
    path.write_text(text)
    return load(path, {}, folder / "run")


@pytest.fixture
def status(tmp_path: Path) -> RunStatus:
    """A run in its third stage, a training with losses and samples; its folder has a space and an umlaut."""
    folder = tmp_path / "Läufe 1" / "run"
    folder.mkdir(parents=True)
    stages = [StageStatus(entry) for entry in plan(chain(folder.parent), folder)]
    stages[0].state, stages[1].state, stages[1].seconds = "cached", "done", 61.0
    stages[1].notes = ["There is <b>little</b> of it.", "step 12 of 120: loss 0.3, the mean of 12 steps"]
    training = stages[2]
    training.state, training.seconds, training.doing = "running", 12.0, "training: 2 of 9 steps"
    samples = folder / "tuned" / "samples"
    samples.mkdir(parents=True)
    (folder / "tuned" / "metrics.csv").write_text(METRICS)
    Image.new("RGB", (520, 140), "orange").save(samples / "step-000002.png")
    return RunStatus("chain", folder, stages, left=TimeLeft(95, 1))


def text_of(page: str) -> str:
    return unescape(re.sub(r"<style>.*</style>|<script>.*</script>|<[^>]*>", " ", page, flags=re.DOTALL))


def test_it_says_what_goes_on(status: RunStatus) -> None:
    page = RunPage(status.folder).page(status)
    words = " ".join(text_of(page).split())
    assert "[3/4] tuned: running, at least 1 min 35 s left" in words
    assert "training: 2 of 9 steps" in words
    assert "1 min 1 s" in words
    assert "Loss of tuned, step 2" in words, "a row that is only half written is none"
    assert "photos: 0.5000" in words
    assert "There is <b>little</b> of it." in words
    assert "step 12 of 120" not in words, "the curve says it"
    assert "tuned, step 2" in words
    assert '<meta http-equiv="refresh"' in page
    assert 'value="2">2 of 4' in page


def test_it_is_one_file(status: RunStatus) -> None:
    page = RunPage(status.folder).page(status)
    assert set(re.findall(r'(?:src|href)="([a-z]+):', page)) == {"data"}
    assert not re.search(r"https?://|@import|url\(", page)


def test_very_large_sheets_are_linked_to(status: RunStatus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdkit.pipeline.live_page.MOST_BYTES", 10)
    assert '<img src="tuned/samples/step-000002.png"' in RunPage(status.folder).page(status)


def test_it_is_not_written_at_every_step(status: RunStatus) -> None:
    page = RunPage(status.folder)
    page.update(status, False)
    written = page.path.read_text()
    status.stages[2].doing = "training: 3 of 9 steps"
    page.update(status, False)
    assert page.path.read_text() == written
    page.update(status, True)
    assert "training: 3 of 9 steps" in page.path.read_text()


def test_a_page_that_cannot_be_written_ends_no_run(status: RunStatus) -> None:
    page = RunPage(status.folder)
    page.path.mkdir()
    page.update(status, True)
    assert page.path.is_dir()


def test_the_end_stops_it(status: RunStatus) -> None:
    status.ended, status.seconds = True, 75.0
    for stage in status.stages:
        stage.state = "done"
    page = RunPage(status.folder).page(status)
    assert "refresh" not in page
    assert "<script>" not in page
    assert headline(status) == "done in 1 min 15 s"


def test_the_end_leads_to_the_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    entries = plan(chain(tmp_path, CHAIN + "  page: {run: report}\n"), folder)
    status = RunStatus("chain", folder, [StageStatus(entry, "done") for entry in entries])
    (folder / "page").mkdir(parents=True)
    # Of an earlier run, as long as this one goes on.
    (folder / "page" / "report.html").write_text("<p>A report</p>")
    link = '<a href="page/report.html">'
    assert link not in RunPage(folder).page(status)
    status.ended = True
    assert link in RunPage(folder).page(status)
    status.problem = "It failed."
    assert link not in RunPage(folder).page(status)


def test_a_run_writes_it_and_says_what_failed(tmp_path: Path) -> None:
    text = "name: chain\nstages:\n  a: {run: adding}\n  b: {run: adding, fail_at: 2}\n"
    folder = tmp_path / "run"
    with pytest.raises(InputError):
        run(chain(tmp_path, text), folder, forced=set(), stop_after=None, progress=Notes())
    failed = (folder / LIVE_NAME).read_text()
    assert "refresh" not in failed
    assert "[2/2] b: failed" in text_of(failed)
    assert "cannot add to 2\nChoose another number." in text_of(failed)
    mended = chain(tmp_path, text.replace(", fail_at: 2", ""))
    run(mended, folder, forced=set(), stop_after=None, progress=Notes())
    words = " ".join(text_of((folder / LIVE_NAME).read_text()).split())
    assert "done in" in words
    assert "up to date" in words


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


CONTRAST = """
const [front, back] = [getComputedStyle(document.querySelector(arguments[0])).color,
  getComputedStyle(document.body).backgroundColor].map((c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => {
    const s = v / 255; return s <= 0.03928 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4; }))
  .map(([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b);
return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_in_a_browser(browser: Browser, status: RunStatus, width: int, dark: bool) -> None:
    RunPage(status.folder).update(status, True)
    browser.size(width, 800)
    browser.dark(dark)
    browser.open((status.folder / LIVE_NAME).as_uri())
    assert browser.text("h1") == "chain"
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    state = browser.run("return document.querySelector('tr.running .state').getBoundingClientRect().right")
    assert state <= width, "what goes on is out of sight"
    assert browser.run("return [...document.images].every((image) => image.naturalWidth > 0)")
    for selector in ("h1", ".quiet", "tr.running .state", "tr.waiting th", "text"):
        assert browser.run(CONTRAST, selector) >= 3
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(19, 21, 25)") == dark
    errors, hosts = browser.logs()
    assert (errors, hosts) == ([], set())


def test_a_browser_follows_the_run_to_its_end(browser: Browser, status: RunStatus) -> None:
    page = RunPage(status.folder)
    page.update(status, True)
    browser.open(page.path.as_uri())
    first = browser.text("tr.running .number:last-child")
    browser.wait(lambda: browser.text("tr.running .number:last-child") != first, "the clock stands")
    for stage in status.stages:
        stage.state, stage.seconds = "done", 1.0
    status.ended, status.seconds = True, 80.0
    page.update(status, True)
    browser.wait(lambda: "done in 1 min 20 s" in browser.text("body"), "it did not load itself anew")
    assert not browser.all("meta[http-equiv]")


def test_a_page_that_is_not_written_any_more_says_since_when(browser: Browser, status: RunStatus) -> None:
    page = RunPage(status.folder)
    page.update(status, True)
    browser.open(page.path.as_uri())
    assert "Nothing new" not in browser.text("body")
    old = re.sub(r'data-written="(\d+)"', lambda match: f'data-written="{int(match[1]) - 300}"', page.path.read_text())
    page.path.write_text(old)
    browser.open(page.path.as_uri())
    assert "Nothing new for 5 min." in browser.text("body")
