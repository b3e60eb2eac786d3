"""Charts as SVG text: axes, labels and marks with plain colours that a page's style sheet may override by class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

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


def text_mark(kind: str, x: object, y: object, text: str, size: float, *, anchor: str = "", fill: str = "#555") -> str:
    """A text at a place; kind: its class; anchor: which part of it stands there, its start when left out."""
    place = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="{kind}" x="{x}" y="{y}"{place} font-size="{size:g}" fill="{fill}">{escape(text)}</text>'


def grid_line(x1: object, x2: object, y1: object, y2: object, *, kind: str = "grid", opacity: float = 0.1) -> str:
    """A faint line between two places."""
    ends = f'x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"'
    return f'<line class="{kind}" {ends} stroke="#000" stroke-opacity="{opacity}"/>'


def label_width(labels: Sequence[str]) -> float:
    """The room that row labels need, at most half the chart."""
    return min(max(7.0 * max(len(label) for label in labels) + 14, LEFT), WIDTH * 0.45)


def row_label(label: str, left: float, middle: float) -> str:
    """A row's label, cut short where it would not fit."""
    longest = int((left - 12) / 6.6)
    shown = label if len(label) <= longest else f"{label[: longest - 1]}…"
    return text_mark("label", f"{left - 10:.1f}", middle + 4, shown, 12.5, anchor="end")


def axes(x_scale: Scale, y_scale: Scale, x_label: str, y_label: str, height: float) -> Iterator[str]:
    """Both axes with ticks, grid lines and labels."""
    for tick in y_scale.ticks():
        at = y_scale(tick)
        yield grid_line(LEFT, WIDTH - RIGHT, f"{at:.1f}", f"{at:.1f}")
        yield text_mark("tick", LEFT - 8, f"{at + 4:.1f}", number_text(tick), 11.5, anchor="end", fill="#666")
    middle = f"{(TOP + height - BOTTOM) / 2:.1f}"
    yield text_mark("axis", 13, f'{middle}" transform="rotate(-90 13 {middle})', y_label, 12, anchor="middle")
    yield from x_axis(x_scale, x_label, height, top=None)


def x_axis(scale: Scale, label: str, height: float, *, top: float | None) -> Iterator[str]:
    """The lower axis; upright grid lines from `top` where it is given."""
    base = height - BOTTOM
    for tick in scale.ticks():
        at = scale(tick)
        if top is not None:
            yield grid_line(f"{at:.1f}", f"{at:.1f}", top, base)
        yield text_mark("tick", f"{at:.1f}", base + 17, number_text(tick), 11.5, anchor="middle", fill="#666")
    yield grid_line(f"{scale.start:.1f}", f"{scale.end:.1f}", base, base, kind="baseline", opacity=0.35)
    yield text_mark("axis", f"{(scale.start + scale.end) / 2:.1f}", height - 6, label, 12, anchor="middle")


def legend(named: Sequence[tuple[str, str, int]]) -> Iterator[str]:
    """(name, colour, number of the series) of each line, from the right."""
    right = float(WIDTH - RIGHT)
    for name, colour, place in reversed(named):
        right -= 6.6 * len(name)
        yield text_mark("label", f"{right:.1f}", 12, name, 12)
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
    return svg([text_mark("label", WIDTH / 2, 40, "no values", 12.5, anchor="middle")], 80, title)


@dataclass(frozen=True)
class Series:
    """One line of a line chart; faint lines stand behind the others."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    faint: bool = False


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart; low and high are None where there is no interval."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    highlight: bool = False


@dataclass(frozen=True)
class Strip:
    """One row of a strip chart: a dot per value above zero, and a bar at their mean."""

    label: str
    values: Sequence[float]


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, title: str) -> str:
    """Lines over a common axis; values that are not finite break the line."""
    points = [(x, y) for line in series for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(y)]
    if not points:
        return empty(title)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    bottom = min(0.0, *ys)
    x_scale = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_scale = Scale(bottom, max(ys) * 1.05 or 1.0, HEIGHT - BOTTOM, TOP)
    marks = list(axes(x_scale, y_scale, x_label, y_label, HEIGHT))
    for place, line in enumerate(series):
        colour = COLOURS[place % len(COLOURS)]
        for piece in _pieces(line):
            path = " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in piece)
            style = f'stroke="{colour}" stroke-width="{1 if line.faint else 2}" opacity="{0.35 if line.faint else 1}"'
            marks.append(
                f'<polyline class="line c{place}" points="{path}" fill="none" {style} stroke-linejoin="round"/>'
            )
    named = [(line.name, COLOURS[place % len(COLOURS)], place) for place, line in enumerate(series) if line.name]
    marks.extend(legend(named) if len(named) > 1 else ())
    return svg(marks, HEIGHT, title)


def _pieces(line: Series) -> Iterator[list[tuple[float, float]]]:
    for finite, points in groupby(zip(line.xs, line.ys, strict=True), key=lambda point: math.isfinite(point[1])):
        if finite:
            yield list(points)


def histogram(
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    marker: tuple[float, str] | None,
    x_label: str,
    y_label: str,
    title: str,
) -> str:
    """Bars between `edges` (one more than counts), and a labelled upright line at the marker."""
    if not counts or len(edges) != len(counts) + 1:
        return empty(title)
    low, high = min(edges), max(edges)
    if marker is not None:
        low, high = min(low, marker[0]), max(high, marker[0])
    x_scale = Scale(low, high, LEFT, WIDTH - RIGHT)
    y_scale = Scale(0, max(counts) * 1.12 or 1, HEIGHT - BOTTOM, TOP)
    marks = list(axes(x_scale, y_scale, x_label, y_label, HEIGHT))
    for place, count in enumerate(counts):
        left, right = x_scale(edges[place]), x_scale(edges[place + 1])
        top = y_scale(count)
        tip = f"{number_text(edges[place])} to {number_text(edges[place + 1])}: {number_text(count)}"
        marks.append(
            f'<rect class="bar c0" x="{left + 0.5:.1f}" y="{top:.1f}" width="{max(right - left - 1, 0.5):.1f}" '
            f'height="{max(HEIGHT - BOTTOM - top, 0):.1f}" fill="{COLOURS[0]}" rx="1">'
            f"<title>{escape(tip)}</title></rect>"
        )
    if marker is not None:
        at = x_scale(marker[0])
        anchor, shift = ("end", -6) if at > WIDTH / 2 else ("start", 6)
        marks.append(
            f'<line class="marker" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" '
            f'stroke="{COLOURS[1]}" stroke-width="2" stroke-dasharray="5 3"/>'
        )
        shown = f"{at + shift:.1f}"
        marks.append(text_mark("marker-text", shown, TOP + 10, marker[1], 12, anchor=anchor, fill=COLOURS[1]))
    return svg(marks, HEIGHT, title)


def bar_chart(rows: Sequence[tuple[str, float]], *, title: str) -> str:
    """Horizontal bars, each with its label above it and its number at its end."""
    if not rows:
        return empty(title)
    height = 40 * len(rows) + 8
    scale = Scale(0, max(value for _, value in rows) or 1, 0, WIDTH - 84)
    marks = []
    for place, (label, value) in enumerate(rows):
        top = 40 * place + 4
        width = max(scale(value), 1.5)
        bar = f'<rect class="bar c0" x="0" y="{top + 16}" width="{width:.1f}" height="14" fill="{COLOURS[0]}" rx="3"/>'
        number = text_mark("number", f"{width + 7:.1f}", top + 27, number_text(value), 12.5, fill="#222")
        marks += [text_mark("label", 0, top + 11, label, 12.5), bar, number]
    return svg(marks, height, title)


def interval_chart(rows: Sequence[Interval], *, x_label: str, title: str) -> str:
    """A dot with a whisker per row: an estimate with its interval."""
    if not rows:
        return empty(title)
    values = [bound for row in rows for bound in (row.value, row.low, row.high) if bound is not None]
    low, high = min(values), max(values)
    margin = (high - low) * 0.08 or abs(high) * 0.05 or 0.05
    left = label_width([row.label for row in rows])
    height = ROW * len(rows) + BOTTOM + 8
    scale = Scale(low - margin, high + margin, left, WIDTH - RIGHT)
    marks = list(x_axis(scale, x_label, height, top=4))
    for place, row in enumerate(rows):
        middle = ROW * place + ROW / 2 + 6
        shade = 1 if row.highlight else 0
        colour = COLOURS[shade]
        tip = f"{row.label}: {number_text(row.value)}"
        marks.append(row_label(row.label, left, middle))
        if row.low is not None and row.high is not None:
            tip += f" ({number_text(row.low)} to {number_text(row.high)})"
            marks.append(
                f'<line class="whisker c{shade}" x1="{scale(row.low):.1f}" x2="{scale(row.high):.1f}" y1="{middle}" '
                f'y2="{middle}" stroke="{colour}" stroke-width="3" stroke-linecap="round" opacity="0.45"/>'
            )
        marks.append(
            f'<circle class="dot c{shade}" cx="{scale(row.value):.1f}" cy="{middle}" r="4.5" fill="{colour}">'
            f"<title>{escape(tip)}</title></circle>"
        )
    return svg(marks, height, title)


def strip_chart(rows: Sequence[Strip], *, x_label: str, title: str) -> str:
    """A dot per value on a logarithmic axis, and a bar at each row's mean; a row of zeros did not move."""
    shown = [[value for value in row.values if value > 0] for row in rows]
    every = [value for values in shown for value in values]
    if not every:
        return empty(title)
    low, high = 10 ** math.floor(math.log10(min(every))), 10 ** math.ceil(math.log10(max(every)) + 1e-9)
    left = label_width([row.label for row in rows])
    height = 44 * len(rows) + BOTTOM + 8
    scale = Scale(low, high if high > low else low * 10, left + 6, WIDTH - RIGHT - 6, log=True)
    marks = list(x_axis(scale, x_label, height, top=4))
    for place, (row, values) in enumerate(zip(rows, shown, strict=True)):
        middle = 44 * place + 28
        marks.append(row_label(row.label, left, middle))
        shade = place % len(COLOURS)
        for number, value in enumerate(values):
            # A fixed scatter, so that equal values stay apart and the same data give the same picture.
            shift = ((number * 7) % 11 - 5) * 2
            marks.append(
                f'<circle class="dot c{shade}" cx="{scale(value):.1f}" cy="{middle + shift}" r="3" '
                f'fill="{COLOURS[shade]}" opacity="0.55"/>'
            )
        if not values:
            marks.append(text_mark("label", f"{left + 10:.1f}", middle + 4, "did not move", 12))
            continue
        mean = sum(values) / len(values)
        marks.append(
            f'<line class="mean" x1="{scale(mean):.1f}" x2="{scale(mean):.1f}" y1="{middle - 17}" y2="{middle + 17}" '
            f'stroke="#222" stroke-width="2.5"><title>mean {number_text(mean)}</title></line>'
        )
    return svg(marks, height, title)
