"""Charts as SVG text: axes, labels and marks with plain colours that a page's style sheet may override by class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from cdkit.evaluation.chart_parts import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    LEFT,
    RIGHT,
    ROW,
    TOP,
    WIDTH,
    Scale,
    axes,
    empty,
    label_width,
    legend,
    number_text,
    row_label,
    svg,
    x_axis,
)


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
    piece: list[tuple[float, float]] = []
    for x, y in zip(line.xs, line.ys, strict=True):
        if math.isfinite(y):
            piece.append((x, y))
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


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
            f'<text class="marker-text" x="{at + shift:.1f}" y="{TOP + 10}" text-anchor="{anchor}" font-size="12" '
            f'fill="{COLOURS[1]}">{escape(marker[1])}</text>'
        )
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
        marks.append(
            f'<text class="label" x="0" y="{top + 11}" font-size="12.5" fill="#555">{escape(label)}</text>'
            f'<rect class="bar c0" x="0" y="{top + 16}" width="{width:.1f}" height="14" fill="{COLOURS[0]}" rx="3"/>'
            f'<text class="number" x="{width + 7:.1f}" y="{top + 27}" font-size="12.5" fill="#222">'
            f"{number_text(value)}</text>"
        )
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
            marks.append(
                f'<text class="label" x="{left + 10:.1f}" y="{middle + 4}" font-size="12" fill="#555">'
                "did not move</text>"
            )
            continue
        mean = sum(values) / len(values)
        marks.append(
            f'<line class="mean" x1="{scale(mean):.1f}" x2="{scale(mean):.1f}" y1="{middle - 17}" y2="{middle + 17}" '
            f'stroke="#222" stroke-width="2.5"><title>mean {number_text(mean)}</title></line>'
        )
    return svg(marks, height, title)
