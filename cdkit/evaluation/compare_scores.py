"""Stage `compare`: scores of several methods as one table like the paper's Table 1, with the paper's own beside it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from cdkit.config import StageConfig, setting
from cdkit.datasets import Dataset
from cdkit.errors import InputError
from cdkit.evaluation.evaluate import MAIN, SCORES_NAME, SUMMARY_NAME
from cdkit.evaluation.paper_table import (
    COLUMNS,
    KID_SCALE,
    TableRow,
    markdown_table,
    order_differences,
    paper_values,
)
from cdkit.inputs import Input
from cdkit.manifest import Counts
from cdkit.markdown import markdown_text
from cdkit.protocols import Context
from cdkit.storage import Folder, atomic_path, read_json, write_json, write_text

if TYPE_CHECKING:
    from torch import Tensor

TABLE_NAME = "table.json"
SEPARATOR = ","


class CompareConfig(StageConfig):
    """Which scores to put side by side: a method's name, and its scores folders, one per concept."""

    single: dict[str, list[str]] = setting(
        {}, "A method and its scores of single concepts: folders of cdkit evaluate, joined by commas.", input="folder"
    )
    multi: dict[str, list[str]] = setting({}, "The same for several concepts in one image.", input="folder")
    resamples: int = setting(1000, "Bootstrap resamples.", ge=100)
    seed: int = setting(0, "Seed of the bootstrap.", ge=0)

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: Any) -> Any:
        """On the command line and in YAML a single folder, or several with commas, may stand for the list."""
        if not isinstance(values, dict):
            return values
        return {
            key: {
                method: folders.split(SEPARATOR) if isinstance(folders, str) else folders
                for method, folders in item.items()
            }
            if key in ("single", "multi") and isinstance(item, dict)
            else item
            for key, item in values.items()
        }

    @model_validator(mode="after")
    def _check(self) -> CompareConfig:
        if not self.single and not self.multi:
            raise ValueError("give the scores of at least one method: single or multi")
        return self


def compare(config: CompareConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write table.json, .md and .csv: pooled estimates per method with intervals, the paper's beside them."""
    rows = [
        TableRow(group, method, pooled(folders, config.resamples, config.seed), paper_values(group, method))
        for group, methods in (("single", config.single), ("multi", config.multi))
        for method, folders in methods.items()
    ]
    encoders = sorted({str(_summary(Path(folder)).get("encoder")) for folder in _folders(config)})
    if len(encoders) > 1:
        raise InputError(
            f"The scores were made with different encoders: {', '.join(encoders)}.",
            hint="Evaluate all of them with the same --encoder.",
        )
    notes = order_differences(rows)
    details = {"encoder": encoders[0], "rows": [row.as_json() for row in rows], "notes": notes}
    write_json(out / TABLE_NAME, details)
    text = "\n".join(f"- {markdown_text(note)}" for note in notes)
    write_text(
        out / "table.md",
        f"{markdown_table(rows)}\n{_legend(encoders[0])}\n{text}\n" if notes else markdown_table(rows),
    )
    _write_csv(out / "table.csv", rows)
    return Dataset("comparison", out.path, Counts(len(rows), len(rows)), details)


def _legend(encoder: str) -> str:
    return (
        f"Scores with the encoder {markdown_text(encoder)}; text alignment is 2.5 · max(cosine, 0), as in the paper. "
        "The paper's KID is of Inception features, ours of the encoder's, so only their order compares. Brackets: "
        "95 % intervals by bootstrap over prompts.\n"
    )


def _folders(config: CompareConfig) -> list[str]:
    return [folder for methods in (config.single, config.multi) for folders in methods.values() for folder in folders]


def pooled(folders: Sequence[str], resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """A method's estimates over all its scores folders: images pooled, prompts of one folder drawn together.

    KID is the mean of the folders' own, its interval from their standard errors; × 10³.
    """
    import torch

    from cdkit.evaluation.intervals import mean_with_interval

    found: dict[str, dict[str, Any]] = {}
    for metric in (
        "text_alignment",
        "clip_score",
        "image_alignment",
        "dino_image_alignment",
        "nearest_photo",
        "drift",
    ):
        values, blocks = [], []
        for folder in folders:
            for (prompt, _), value in per_image(Path(folder), metric).items():
                values.append(value)
                blocks.append((folder, prompt))
        if values:
            rows: Tensor = torch.tensor(values, dtype=torch.float64)
            found[metric] = mean_with_interval(rows, blocks, resamples=resamples, seed=seed).as_json()
    kids = [kid for folder in folders if (kid := _summary(Path(folder))["metrics"].get("kid"))]
    if kids and len(kids) == len(folders):
        found["kid"] = _mean_kid(kids)
    return found


def per_image(folder: Path, metric: str) -> dict[tuple[str, str], float]:
    """One score of every image of the main set, by prompt and path; the mean over its concepts if several."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(folder / SCORES_NAME).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{folder} holds no scores: {error}", hint="Run cdkit evaluate first.") from error
    by_image: dict[tuple[str, str], list[float]] = {}
    whole: dict[tuple[str, str], float] = {}
    for row in table:
        if row["set"] != MAIN or row["metric"] != metric:
            continue
        key = (row["prompt"], row["path"])
        by_image.setdefault(key, []).append(row["value"])
        if row["concept"] is None:
            whole[key] = row["value"]
    return {key: whole.get(key, sum(values) / len(values)) for key, values in by_image.items()}


def _mean_kid(kids: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    value = KID_SCALE * sum(kid["value"] for kid in kids) / len(kids)
    errors = [kid.get("standard_error") for kid in kids]
    found = {"value": value, "low": None, "high": None, "n": sum(kid["n"] for kid in kids)}
    if all(error is not None for error in errors):
        spread = 1.96 * KID_SCALE * sum(error**2 for error in errors if error is not None) ** 0.5 / len(kids)
        found |= {"low": value - spread, "high": value + spread}
    return found


def _summary(folder: Path) -> dict[str, Any]:
    summary = read_json(folder / SUMMARY_NAME)
    if not isinstance(summary, dict) or "metrics" not in summary:
        raise InputError(f"{folder} holds no scores.", hint="Run cdkit evaluate first.")
    return summary


def _write_csv(path: Path, rows: Sequence[TableRow]) -> None:
    metrics = list(dict.fromkeys([*COLUMNS, *(metric for row in rows for metric in row.ours)]))
    heads = [f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high", "_n")]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["group", "method", *heads, *(f"paper_{column}" for column in COLUMNS)])
        for row in rows:
            cells = [
                row.ours[metric].get(key) if metric in row.ours else None
                for metric in metrics
                for key in ("value", "low", "high", "n")
            ]
            writer.writerow([row.group, row.method, *cells, *(row.paper.get(column) for column in COLUMNS)])
