"""live.html: a training's losses and samples on one page that loads itself anew while the training runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cdkit.core.storage import write_text

LIVE_NAME = "live.html"
SECONDS_BETWEEN_PAGES = 2.0
WIDTH, HEIGHT = 720, 240
# A loss at random times and noise jumps: a point is the mean of so many steps that there are at most this many.
POINTS = 120
CURVES = {"target_loss": ("photos", "#c2410c"), "regularization_loss": ("regularization", "#1d4ed8")}
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
            names = sorted((path.name for path in (self.folder / self.samples).glob("step-*.png")), reverse=True)
            images = [f"{self.samples}/{name}" for name in names]
            write_text(self.folder / LIVE_NAME, page(rows, self.steps, images, finished=finished))


def page(rows: Rows, steps: int, images: Sequence[str], *, finished: bool) -> str:
    """The page as HTML. rows: as metrics.csv has them; images: links, the newest first."""
    last = rows[-1]
    step, seconds = int(last["step"] or 0), last["seconds"] or 0.0
    state = "done" if finished else f"about {seconds / max(step, 1) * (steps - step):.0f} s left"
    again = "" if finished else '<meta http-equiv="refresh" content="3">'
    drawn = "".join(
        f'<figure><img src="{escape(link)}" alt="{escape(link)}"><figcaption>{escape(Path(link).stem)}</figcaption>'
        "</figure>"
        for link in images
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}<title>Step {step} of {steps}</title>'
        "<style>body{font:15px system-ui;margin:2em auto;max-width:60em}img{max-width:100%}figure{margin:1em 0}"
        "svg{border:1px solid #ddd}</style></head><body>"
        f"<h1>Step {step} of {steps}</h1><p>Loss {last['loss']:.4f}; {seconds:.0f} s, {state}.</p>"
        f"{chart(rows)}{drawn}</body></html>\n"
    )


def chart(rows: Rows) -> str:
    """The losses over the steps as SVG, smoothed."""
    curves = {name: smoothed([(row["step"] or 0.0, row[name]) for row in rows]) for name in CURVES}
    points = [point for curve in curves.values() for point in curve]
    most = max((loss for _, loss in points), default=0.0) or 1.0
    longest = max((step for step, _ in points), default=0.0) or 1.0
    lines = []
    for name, curve in curves.items():
        if curve:
            label, colour = CURVES[name]
            path = " ".join(f"{WIDTH * x / longest:.1f},{HEIGHT * (1 - y / most):.1f}" for x, y in curve)
            lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
            lines.append(
                f'<text x="{WIDTH - 8}" y="{18 * (1 + list(CURVES).index(name))}" fill="{colour}" '
                f'text-anchor="end">{label}: {curve[-1][1]:.4f}</text>'
            )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" aria-label="loss">{"".join(lines)}</svg>'


def smoothed(values: Sequence[tuple[float, float | None]]) -> list[tuple[float, float]]:
    """Means over equally many steps each, at most POINTS of them; steps without a value are left out."""
    there = [(step, value) for step, value in values if value is not None]
    each = -(-len(there) // POINTS) or 1
    parts = [there[start : start + each] for start in range(0, len(there), each)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]
