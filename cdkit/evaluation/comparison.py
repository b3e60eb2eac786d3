"""Methods in one table like the paper's Table 1, its own figures beside ours, and where the orders differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from cdkit.core.formatting import markdown_text
from cdkit.evaluation.method_scores import CHANGE_COLUMNS, OWN_COLUMNS, WORST_ALIGNMENT

TABLE_NAME = "table.json"
# Custom Diffusion (Kumari et al. 2023), Tables 1, 3 and 5: text alignment as CLIPScore, image alignment, KID × 10³.
PAPER_SINGLE: Mapping[str, tuple[float, float, float | None]] = {
    "textual-inversion": (0.670, 0.827, 22.27),
    "dreambooth": (0.781, 0.776, 32.53),
    "fine-tune-all": (0.795, 0.748, 19.27),
    "custom-diffusion": (0.795, 0.775, 20.96),
    "without-regularization": (0.799, 0.756, 32.64),
    "generated-regularization": (0.791, 0.768, 34.70),
    "without-augmentation": (0.800, 0.736, None),
}
PAPER_MULTI: Mapping[str, tuple[float, float, float | None]] = {
    "textual-inversion": (0.544, 0.630, None),
    "dreambooth": (0.783, 0.695, None),
    "fine-tune-all": (0.787, 0.691, None),
    "sequential": (0.797, 0.700, None),
    "merged": (0.800, 0.695, None),
    "joint": (0.801, 0.706, None),
}
COLUMNS = ("clip_score", "image_alignment", "kid")
COLUMN_NAMES = {
    "clip_score": "text alignment",
    "image_alignment": "image alignment",
    "kid": "KID × 10³",
    "text_change": "change of text alignment, unrelated prompts",
    "pixels_kept": "pixels kept, unrelated prompts",
    WORST_ALIGNMENT: "image alignment, worst",
    "clip_score_change": "change of text alignment",
    "image_alignment_change": "change of image alignment",
}
GROUP_NAMES = {"single": "one concept", "multi": "several concepts"}
LESS_IS_BETTER = ("kid",)


@dataclass(frozen=True)
class TableRow:
    """One method: our estimates by column ({value, low, high, n}), and the paper's values by column."""

    group: str
    method: str
    ours: Mapping[str, Mapping[str, Any]]
    paper: Mapping[str, float]

    def cells(self, columns: Sequence[str]) -> list[str]:
        """Ours with its interval and, in the paper's columns, its figure."""
        cells = []
        for column in columns:
            cells.append(interval_text(self.ours.get(column)))
            if column in COLUMNS:
                cells.append(short_number(self.paper[column]) if column in self.paper else "–")
        return cells


def paper_values(group: str, method: str) -> dict[str, float]:
    """The paper's figures of a method by column; empty for a method it has not."""
    values = (PAPER_MULTI if group == "multi" else PAPER_SINGLE).get(method)
    if values is None:
        return {}
    return {column: value for column, value in zip(COLUMNS, values, strict=True) if value is not None}


def order_differences(rows: Sequence[TableRow]) -> list[str]:
    """In plain words, every pair of methods that a column orders otherwise than the paper does."""
    lines: list[str] = []
    for group in dict.fromkeys(row.group for row in rows):
        for column in COLUMNS:
            methods = [row for row in rows if row.group == group and column in row.ours and column in row.paper]
            if len(methods) < 2:
                continue
            pairs = combinations(methods, 2)
            differences = [line for first, second in pairs if (line := _difference(first, second, column))]
            where = f"{GROUP_NAMES.get(group, group)}, {COLUMN_NAMES[column]}"
            lines.extend(f"{where}: {line}" for line in differences)
            if not differences:
                lines.append(f"{where}: the {len(methods)} methods stand in the paper's order.")
    return lines


def _difference(first: TableRow, second: TableRow, column: str) -> str:
    """One pair; empty when it stands as in the paper or the paper has the two equal."""
    ours, theirs = [first.ours[column], second.ours[column]], [first.paper[column], second.paper[column]]
    gap, paper_gap = ours[0]["value"] - ours[1]["value"], theirs[0] - theirs[1]
    if paper_gap == 0 or gap * paper_gap > 0:
        return ""
    values = f"({short_number(ours[0]['value'])} and {short_number(ours[1]['value'])})"
    papers = f"({short_number(theirs[0])} and {short_number(theirs[1])})"
    if gap == 0:
        return f"{first.method} and {second.method} are equal here {values}, in the paper they are not {papers}."
    better = "better" if (gap < 0) == (column in LESS_IS_BETTER) else "worse"
    doubt = "; the intervals overlap, so this may be chance" if _overlap(*ours) else ""
    return (
        f"{first.method} is {better} than {second.method} here {values}, in the paper it is the other way round "
        f"{papers}{doubt}."
    )


def _overlap(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two intervals have a value in common; what has none may have any value."""
    if None in (first["low"], first["high"], second["low"], second["high"]):
        return True
    return bool(first["low"] <= second["high"] and second["low"] <= first["high"])


def short_number(value: float) -> str:
    """Three decimals below ten, one below a thousand, none above; a true minus sign."""
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.removeprefix("-")


def shown_columns(rows: Sequence[TableRow]) -> list[str]:
    """The columns in which there is any figure, ours or the paper's."""
    columns = (*COLUMNS, WORST_ALIGNMENT, *CHANGE_COLUMNS.values(), *OWN_COLUMNS)
    return [column for column in columns if any(column in row.ours or column in row.paper for row in rows)]


def headings(columns: Sequence[str]) -> list[str]:
    """The heads of the columns as `TableRow.cells` fills them."""
    return [head for column in columns for head in (COLUMN_NAMES[column], *(["paper"] if column in COLUMNS else []))]


def markdown_page(rows: Sequence[TableRow], encoder: str, notes: Sequence[str]) -> str:
    """The table as Markdown, with what it means and its notes where there are any."""
    if not notes:
        return markdown_table(rows)
    said = "\n".join(f"- {markdown_text(note)}" for note in notes)
    return (
        f"{markdown_table(rows)}\nScores with the encoder {markdown_text(encoder)}; text alignment is "
        "2.5 · max(cosine, 0), as in the paper. The paper's KID is of Inception features, ours of the encoder's, so "
        f"only their order compares. Brackets: 95 % intervals by bootstrap over prompts.\n\n{said}\n"
    )


def markdown_table(rows: Sequence[TableRow]) -> str:
    """The rows as Markdown: ours with intervals, the paper's figure beside each."""
    shown = shown_columns(rows)
    heads = headings(shown)
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for group in dict.fromkeys(row.group for row in rows):
        lines.append(f"| **{markdown_text(GROUP_NAMES.get(group, group))}** |{' |' * len(heads)}")
        for row in (row for row in rows if row.group == group):
            lines.append(f"| {markdown_text(row.method)} | {' | '.join(row.cells(shown))} |")
    return "\n".join(lines) + "\n"


def csv_table(rows: Sequence[TableRow]) -> tuple[list[str], list[list[Any]]]:
    """The names of the columns, and a row per method: ours with bounds and number, then the paper's."""
    metrics = list(dict.fromkeys([*COLUMNS, *(metric for row in rows for metric in row.ours)]))
    names = [f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high", "_n")]
    cells = [
        [row.ours.get(metric, {}).get(key) for metric in metrics for key in ("value", "low", "high", "n")]
        for row in rows
    ]
    table = [
        [row.group, row.method, *ours, *(row.paper.get(column) for column in COLUMNS)]
        for row, ours in zip(rows, cells, strict=True)
    ]
    return ["group", "method", *names, *(f"paper_{column}" for column in COLUMNS)], table


def interval_text(estimate: Mapping[str, Any] | None) -> str:
    """`0.795 (0.781–0.809)`, or what it is of in brackets; an en dash alone where there is nothing."""
    if estimate is None:
        return "–"
    bounds = estimate.get("of") or bounds_text(estimate)
    return f"{short_number(estimate['value'])} ({bounds})" if bounds else short_number(estimate["value"])


def bounds_text(estimate: Mapping[str, Any]) -> str:
    """`0.781–0.809`; empty where there is no interval."""
    if estimate.get("low") is None or estimate.get("high") is None:
        return ""
    low, high = short_number(estimate["low"]), short_number(estimate["high"])
    return f"{low} to {high}" if low.startswith("−") else f"{low}–{high}"
