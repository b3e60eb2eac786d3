from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.evaluation.charts import (
    Interval,
    Scale,
    Series,
    Strip,
    bar_chart,
    histogram,
    interval_chart,
    line_chart,
    nice_step,
    number_text,
    strip_chart,
)

TRICKY = '<script>alert(1)</script> & "quotes"'
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


def _parse(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def _coordinates(root: ElementTree.Element) -> list[float]:
    names = ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height")
    return [float(node.attrib[name]) for node in root.iter() for name in names if name in node.attrib]


@pytest.mark.parametrize(
    "chart",
    [
        line_chart(
            [Series(TRICKY, [1, 2], [3, math.nan]), Series("b", [1, 2], [1, 2])],
            x_label=TRICKY,
            y_label="y",
            title="t",
        ),
        histogram([0, 1, 2], [3, 0], marker=(0.5, TRICKY), x_label="x", y_label="y", title=TRICKY),
        bar_chart([(TRICKY, 3), ("none", 0)], title="t"),
        interval_chart([Interval(TRICKY, 0.5, 0.4, 0.6), Interval("alone", 0.5)], x_label="x", title="t"),
        strip_chart([Strip(TRICKY, [0.1, 0.2]), Strip("still", [0.0])], x_label="x", title="t"),
    ],
)
def test_labels_are_escaped_and_the_svg_is_whole(chart: str) -> None:
    root = _parse(chart)
    assert "<script" not in chart
    assert not [node for node in root.iter() if node.tag.endswith("script")]
    assert all(math.isfinite(value) for value in _coordinates(root))


@pytest.mark.parametrize(
    "chart",
    [
        line_chart([], x_label="x", y_label="y", title="t"),
        line_chart([Series("a", [1], [math.nan])], x_label="x", y_label="y", title="t"),
        histogram([], [], marker=None, x_label="x", y_label="y", title="t"),
        bar_chart([], title="t"),
        interval_chart([], x_label="x", title="t"),
        strip_chart([Strip("a", [0.0])], x_label="x", title="t"),
    ],
)
def test_nothing_to_draw_says_so(chart: str) -> None:
    assert "no values" in "".join(_parse(chart).itertext())


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_any_values_stay_inside_the_chart(values: list[float]) -> None:
    rows = [Interval(str(place), value, value - 1, value + 1) for place, value in enumerate(values)]
    root = _parse(interval_chart(rows, x_label="x", title="t"))
    dots = [float(node.attrib["cx"]) for node in root.iter() if "cx" in node.attrib]
    assert len(dots) == len(values)
    assert all(0 <= x <= 480 for x in dots)
    _parse(line_chart([Series("", range(len(values)), values)], x_label="x", y_label="y", title="t"))


def test_ticks_are_round() -> None:
    assert Scale(0, 1, 0, 100).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert Scale(0.1, 1, 0, 100, log=True).ticks() == pytest.approx([0.1, 0.2, 0.5, 1])
    assert Scale(1e-5, 1, 0, 100, log=True).ticks() == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1])
    assert nice_step(0.03) == pytest.approx(0.05)
    assert [number_text(v) for v in (0.25, 1234.5, 0.00012, 3.0)] == ["0.25", "1,234", "1.2e-4", "3"]


def test_a_taller_bar_for_a_larger_count() -> None:
    root = _parse(histogram([0, 1, 2], [1, 4], marker=None, x_label="x", y_label="y", title="t"))
    heights = [float(node.attrib["height"]) for node in root.iter() if node.attrib.get("class") == "bar c0"]
    assert heights[1] == pytest.approx(4 * heights[0], rel=0.01)
