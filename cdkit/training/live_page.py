"""live.html: how far a training is, on one page that loads itself anew; what it is built of, for a run's page too."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from cdkit.core.storage import write_text
from cdkit.training.step_names import newest_first

LIVE_NAME = "live.html"
SECONDS_BETWEEN_PAGES = 2.0
SECONDS_BETWEEN_LOADS = 3
WIDTH, HEIGHT = 720, 240
# A loss at random times and noise jumps: a point is the mean of so many steps that there are at most this many.
POINTS = 120
# What a curve is called, and its colour in live.css.
CURVES = {"target_loss": ("photos", "first"), "regularization_loss": ("regularization", "second")}
Rows = Sequence[Mapping[str, float | None]]


@dataclass
class LivePage:
    """The page of a training of so many steps in a folder; samples are the folder's step-*.png."""

    folder: Path
    steps: int
    samples: str
    _written: float = -SECONDS_BETWEEN_PAGES

    def update(self, rows: Rows, *, finished: bool = False) -> None:
        """Write the page, unless it was written a moment ago and the training goes on."""
        now = time.monotonic()
        if rows and (finished or now - self._written >= SECONDS_BETWEEN_PAGES):
            self._written = now
            sheets = newest_first(self.folder / self.samples, ".png")
            images = [f"{self.samples}/{path.name}" for _, path in sheets]
            write_text(self.folder / LIVE_NAME, page(rows, self.steps, images, finished=finished))


def page(rows: Rows, steps: int, images: Sequence[str], *, finished: bool) -> str:
    """The page as HTML. rows: as metrics.csv has them; images: links, the newest first."""
    last = rows[-1]
    step, seconds = int(last["step"] or 0), last["seconds"] or 0.0
    state = "done" if finished else f"about {seconds / max(step, 1) * (steps - step):.0f} s left"
    title = f"Step {step} of {steps}"
    drawn = "".join(figure(link, link, Path(link).stem) for link in images)
    said = f"<p>Loss {last['loss']:.4f}; {seconds:.0f} s, {state}.</p>"
    return document(title, f"<h1>{title}</h1>{said}{chart(rows)}{drawn}", again=not finished)


def document(title: str, body: str, *, again: bool) -> str:
    """A page around `body`, which is HTML; again: it loads itself anew every few seconds."""
    refresh = f'<meta http-equiv="refresh" content="{SECONDS_BETWEEN_LOADS}">' if again else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{refresh}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{_style()}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def figure(source: str, name: str, caption: str) -> str:
    """A picture with what it is. source: a link, or the picture itself as a `data:` URL."""
    return (
        f'<figure><img src="{escape(source)}" alt="{escape(name)}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def chart(rows: Rows) -> str:
    """The losses over the steps as SVG, smoothed."""
    curves = {name: smoothed([(row["step"] or 0.0, row[name]) for row in rows]) for name in CURVES}
    points = [point for curve in curves.values() for point in curve]
    most = max((loss for _, loss in points), default=0.0) or 1.0
    longest = max((step for step, _ in points), default=0.0) or 1.0
    lines = []
    for number, (name, curve) in enumerate(curves.items(), start=1):
        if curve:
            label, colour = CURVES[name]
            path = " ".join(f"{WIDTH * x / longest:.1f},{HEIGHT * (1 - y / most):.1f}" for x, y in curve)
            lines.append(f'<polyline style="stroke: var(--{colour})" points="{path}"/>')
            lines.append(
                f'<text x="{WIDTH - 8}" y="{1.2 * number:.1f}em" style="fill: var(--{colour})" text-anchor="end">'
                f"{label}: {curve[-1][1]:.4f}</text>"
            )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss">{"".join(lines)}</svg>'


def smoothed(values: Sequence[tuple[float, float | None]]) -> list[tuple[float, float]]:
    """Means over equally many steps each, at most POINTS of them; steps without a value are left out."""
    there = [(step, value) for step, value in values if value is not None]
    each = -(-len(there) // POINTS) or 1
    parts = [there[start : start + each] for start in range(0, len(there), each)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


@cache
def _style() -> str:
    return (Path(__file__).parent / "live.css").read_text(encoding="utf-8")
