"""What charts are made of: scales with round ticks, axes, row labels, a legend, and the SVG around them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 16, 44
COLOURS = ("#2f6fde", "#d9822b", "#2e9d6b", "#a855b5", "#8a8f98")
ROW = 30


@dataclass(frozen=True)
class Scale:
    """Maps values from low to high onto pixels from start to end, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (
            (math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low)))
            if self.log
            else (self.low, self.high, value)
        )
        span = high - low or 1.0
        return self.start + (at - low) / span * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values inside the scale, about as many as wanted; on a logarithmic one powers of ten (1, 2, 5)."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(powers) <= 3 else (1,)
            every = [factor * 10.0**power for power in powers for factor in factors]
            return [value for value in every if self.low * 0.999 <= value <= self.high * 1.001]
        step = nice_step((self.high - self.low) / wanted)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


def nice_step(rough: float) -> float:
    """The next step of 1, 2, 2.5 or 5 times a power of ten."""
    if not math.isfinite(rough) or rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))


def number_text(value: float) -> str:
    """A number as people write it: 4 significant digits, thousands grouped, no needless zeros."""
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e7):
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def label_width(labels: Sequence[str]) -> float:
    """The room that row labels need, at most half the chart."""
    return min(max(7.0 * max(len(label) for label in labels) + 14, LEFT), WIDTH * 0.45)


def row_label(label: str, left: float, middle: float) -> str:
    """A row's label, cut short where it would not fit."""
    longest = int((left - 12) / 6.6)
    shown = label if len(label) <= longest else f"{label[: longest - 1]}…"
    return (
        f'<text class="label" x="{left - 10:.1f}" y="{middle + 4}" text-anchor="end" font-size="12.5" fill="#555">'
        f"{escape(shown)}</text>"
    )


def axes(x_scale: Scale, y_scale: Scale, x_label: str, y_label: str, height: float) -> Iterator[str]:
    """Both axes with ticks, grid lines and labels."""
    for tick in y_scale.ticks():
        at = y_scale(tick)
        yield (
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#000" '
            f'stroke-opacity="0.1"/><text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end" '
            f'font-size="11.5" fill="#666">{number_text(tick)}</text>'
        )
    middle = (TOP + height - BOTTOM) / 2
    yield (
        f'<text class="axis" x="13" y="{middle:.1f}" transform="rotate(-90 13 {middle:.1f})" text-anchor="middle" '
        f'font-size="12" fill="#555">{escape(y_label)}</text>'
    )
    yield from x_axis(x_scale, x_label, height, top=None)


def x_axis(scale: Scale, label: str, height: float, *, top: float | None) -> Iterator[str]:
    """The lower axis; upright grid lines from `top` where it is given."""
    base = height - BOTTOM
    for tick in scale.ticks():
        at = scale(tick)
        if top is not None:
            yield (
                f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{base}" stroke="#000" '
                f'stroke-opacity="0.1"/>'
            )
        yield (
            f'<text class="tick" x="{at:.1f}" y="{base + 17}" text-anchor="middle" font-size="11.5" fill="#666">'
            f"{number_text(tick)}</text>"
        )
    yield (
        f'<line class="baseline" x1="{scale.start:.1f}" x2="{scale.end:.1f}" y1="{base}" y2="{base}" stroke="#000" '
        f'stroke-opacity="0.35"/><text class="axis" x="{(scale.start + scale.end) / 2:.1f}" y="{height - 6}" '
        f'text-anchor="middle" font-size="12" fill="#555">{escape(label)}</text>'
    )


def legend(named: Sequence[tuple[str, str, int]]) -> Iterator[str]:
    """(name, colour, number of the series) of each line, from the right."""
    right = float(WIDTH - RIGHT)
    for name, colour, place in reversed(named):
        right -= 6.6 * len(name)
        yield f'<text class="label" x="{right:.1f}" y="12" font-size="12" fill="#555">{escape(name)}</text>'
        right -= 16
        yield f'<rect class="bar c{place}" x="{right:.1f}" y="6" width="11" height="4" rx="2" fill="{colour}"/>'
        right -= 14


def svg(marks: Sequence[str], height: float, title: str) -> str:
    """The SVG around the marks; `title` is read out by screen readers."""
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif">{"".join(marks)}</svg>'
    )


def empty(title: str) -> str:
    """A chart of nothing."""
    place = f'x="{WIDTH / 2}" y="40" text-anchor="middle"'
    text = f'<text class="label" {place} font-size="12.5" fill="#555">no values</text>'
    return svg([text], 80, title)
