"""Report section of a comparison: several methods in one table with intervals, the paper's figures beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdkit.core.storage import read_json
from cdkit.evaluation.charts import interval_chart
from cdkit.evaluation.comparison import (
    COLUMN_NAMES,
    COLUMNS,
    GROUP_NAMES,
    TableRow,
    headings,
    shown_columns,
)
from cdkit.evaluation.method_scores import OWN_COLUMNS
from cdkit.report.picture_box import Chart, PictureBox
from cdkit.report.run_folder import StepFolder
from cdkit.report.sections.scores import interval

# The methods of the paper's own.
HIGHLIGHTED = ("custom-diffusion", "joint", "merged")


@dataclass(frozen=True)
class ComparisonSection:
    """The table of a compare step: groups of (method, cells), and where the order differs from the paper's."""

    name: str
    headings: Sequence[str]
    groups: Mapping[str, Sequence[tuple[str, Sequence[str]]]]
    notes: Sequence[str]
    charts: Sequence[Chart]


def comparison_section(step: StepFolder, pictures: PictureBox) -> ComparisonSection | None:
    """Ours with intervals and the paper's figures beside; None when the step wrote no table."""
    if not (step.path / "table.json").exists():
        return None
    details = read_json(step.path / "table.json")
    rows = [TableRow(**entry) for entry in details["rows"]]
    shown = shown_columns(rows)
    groups: dict[str, list[tuple[str, list[str]]]] = {}
    for row in rows:
        groups.setdefault(GROUP_NAMES.get(row.group, row.group), []).append((row.method, row.cells(shown)))
    return ComparisonSection(step.name, headings(shown), groups, details["notes"], _comparison_charts(rows, pictures))


def _comparison_charts(rows: Sequence[TableRow], pictures: PictureBox) -> list[Chart]:
    charts = []
    for group in dict.fromkeys(row.group for row in rows):
        for column in (*COLUMNS, *OWN_COLUMNS):
            methods = [row for row in rows if row.group == group and column in row.ours]
            if len(methods) > 1:
                intervals = [
                    interval(row.method, row.ours[column], highlight=row.method in HIGHLIGHTED) for row in methods
                ]
                title = f"{GROUP_NAMES.get(group, group)}: {COLUMN_NAMES[column]}"
                svg = interval_chart(intervals, x_label=COLUMN_NAMES[column], title=title)
                charts.append(pictures.chart(title, svg, f"compared-{title}"))
    return [chart for chart in charts if chart is not None]
