"""Types the commands of docs/gallery.md, and takes its pictures: `python -m tests.docs.gallery` (needs Chromium).

--work FOLDER: where the commands run; what is done there already is not made again.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

from PIL import Image

from tests.support.browser import Browser, chromium

ROOT = Path(__file__).parents[2]
PAGE, IMAGES = ROOT / "docs" / "gallery.md", ROOT / "docs" / "images"
RUN = Path("runs/quickstart")
REPORT = RUN / "page" / "report.html"
DESK, PHONE = (1200, 1000), (360, 900)
# As many as a palette has: a picture in the docs has few bytes.
COLOURS = 256
# What is taken of pictures that the commands wrote: name, file, the part of it.
FILES: dict[str, tuple[Path, tuple[int, int, int, int] | None]] = {
    "gallery-set.png": (RUN / "star-set" / "contact_sheet.png", (0, 0, 1422, 540)),
    "gallery-samples.png": (RUN / "star-after" / "grid.png", (0, 0, 300, 1046)),
    "gallery-attention.png": (Path("attention/attention.png"), None),
}
CHARTS = {
    "gallery-loss.png": RUN / "page" / "pictures" / "loss-star-tuned.svg",
    "gallery-scores.png": RUN / "page" / "pictures" / "scores-image-alignment.svg",
    "gallery-weights.png": Path("weights/weight_change.svg"),
}
# Commands whose words in a terminal are the picture.
TERMINALS = {
    "index search": "gallery-search.png",
    "tokens explain": "gallery-tokens.png",
    "export": "gallery-export.png",
}


def commands() -> list[str]:
    """The page's commands, in order."""
    blocks = re.findall(r"```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("cdkit ")]


def pictures() -> list[str]:
    """The files that this takes; the pages of `cdkit serve` and `cdkit review` are taken by tests.docs.pictures."""
    pages = ["report.png", "gallery-phone.png", "gallery-both.png", "gallery-preference.png"]
    return [*FILES, *CHARTS, *TERMINALS.values(), *pages]


def type_commands(work: Path) -> dict[str, str]:
    """Run every command in a folder; what those of TERMINALS said, by picture."""
    said = {}
    # As wide as the picture, and in plain letters.
    surroundings = {**os.environ, "COLUMNS": "110", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    for line in commands():
        print(f"$ {line}", flush=True)
        words = [sys.executable, "-m", "cdkit", *shlex.split(line)[1:]]
        done = subprocess.run(
            words, cwd=work, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{line} ended with exit code {done.returncode}:\n{done.stdout}")
        for start, name in TERMINALS.items():
            if line.startswith(f"cdkit {start} "):
                said[name] = f"$ {line}\n{done.stdout}"
    return said


def save(picture: Image.Image, name: str) -> None:
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)


def screen(browser: Browser, selector: str | None = None) -> Image.Image:
    """What the window shows, or one part of the page; without a scroll bar."""
    hidden = "document.head.insertAdjacentHTML('beforeend', '<style>::-webkit-scrollbar { display: none }</style>')"
    browser.run(hidden)
    content = browser.driver.get_screenshot_as_png() if selector is None else browser.one(selector).screenshot_as_png
    return Image.open(io.BytesIO(content))


def take_pages(browser: Browser, work: Path) -> None:
    """The report on a desk, and on a phone in the dark; one pair of the preference study."""
    browser.size(*DESK)
    browser.open((work / REPORT).as_uri())
    save(screen(browser), "report.png")
    browser.size(1000, 1400)
    both = "document.querySelectorAll('.result')[2].querySelector('table').id = 'both'"
    browser.run(f"{both}; document.querySelector('#both').scrollIntoView()")
    save(screen(browser, "#both"), "gallery-both.png")
    browser.size(*PHONE)
    browser.dark(True)
    browser.run("document.querySelector('#results').scrollIntoView()")
    browser.wait(lambda: browser.run("return [...document.images].slice(0, 16).every((image) => image.complete)"))
    save(screen(browser), "gallery-phone.png")
    browser.dark(False)
    browser.size(*DESK)
    browser.open((work / "study" / "preference.html").as_uri())
    browser.one("#begin").click()
    save(screen(browser), "gallery-preference.png")


def take_drawings(browser: Browser, work: Path, said: dict[str, str]) -> None:
    """Charts, and what was said in a terminal, each as large as it is."""
    browser.size(*DESK)
    bodies = {name: (work / path).read_text(encoding="utf-8") for name, path in CHARTS.items()}
    bodies |= {name: f"<pre>{escape(text.rstrip())}</pre>" for name, text in said.items()}
    style = "body{margin:0}#it{display:inline-block;padding:14px;background:#fff}svg{width:640px;display:block}"
    style += (
        "pre{margin:0;padding:6px;font:14px/1.45 'DejaVu Sans Mono',monospace;white-space:pre-wrap;max-width:1000px}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, body in bodies.items():
            page = Path(folder) / "page.html"
            page.write_text(f'<!doctype html><meta charset="utf-8"><style>{style}</style><div id="it">{body}</div>')
            browser.open(page.as_uri())
            save(screen(browser, "#it"), name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="a folder to run in, kept [default: a temporary one]")
    asked = parser.parse_args().work
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        work = (asked or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        said = type_commands(work)
        for name, (path, part) in FILES.items():
            with Image.open(work / path) as picture:
                save(picture.crop(part) if part else picture, name)
        take_pages(browser, work)
        take_drawings(browser, work, said)


if __name__ == "__main__":
    main()
