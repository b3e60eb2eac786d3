"""A method's scores over the folders of its runs: pooled, the worst of them, and its change against another method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdkit.core.errors import InputError
from cdkit.core.shards import read_shard
from cdkit.core.storage import read_json
from cdkit.evaluation.config import MAIN, UNRELATED
from cdkit.evaluation.scoring import SCORES_NAME, SUMMARY_NAME

IMAGE_ALIGNMENT, WORST_ALIGNMENT = "image_alignment", "worst_image_alignment"
# What training did to prompts that name no concept; the paper has no such figure.
OWN_COLUMNS = ("text_change", "pixels_kept")
# Means over images; KID is of a whole set.
POOLED = (
    *("text_alignment", "clip_score", IMAGE_ALIGNMENT, "dino_image_alignment", "nearest_photo", "drift"),
    *OWN_COLUMNS,
)
CHANGE_COLUMNS = {"clip_score": "clip_score_change", IMAGE_ALIGNMENT: "image_alignment_change"}
KID_SCALE = 1000.0


@dataclass(frozen=True)
class ImageScores:
    """What `cdkit evaluate` wrote. rows: of the images of the main and the unrelated set; summary: summary.json."""

    place: str
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]

    def per_image(self, metric: str) -> dict[tuple[str, str], float]:
        """One score of every image by prompt and path; the mean over its concepts if several."""
        by_image: dict[tuple[str, str], list[float]] = {}
        whole: dict[tuple[str, str], float] = {}
        for row in self.rows:
            if row["metric"] != metric:
                continue
            key = (row["prompt"], row["path"])
            by_image.setdefault(key, []).append(row["value"])
            if row["concept"] is None:
                whole[key] = row["value"]
        return {key: whole.get(key, sum(values) / len(values)) for key, values in by_image.items()}

    def by_prompt_and_seed(self, metric: str) -> dict[tuple[str, int], float]:
        """`per_image` by prompt and seed, which two methods have in common."""
        seeds = {(row["prompt"], row["path"]): row["seed"] for row in self.rows}
        return {(prompt, seeds[prompt, path]): value for (prompt, path), value in self.per_image(metric).items()}


def read_image_scores(place: str) -> ImageScores:
    """A folder of scores; raises InputError when it is none."""
    folder = Path(place)
    rows = read_shard(folder / SCORES_NAME, hint="Run cdkit evaluate first.").to_pylist()
    summary = read_json(folder / SUMMARY_NAME)
    if not isinstance(summary, dict) or "metrics" not in summary:
        raise InputError(f"{folder} holds no scores.", hint="Run cdkit evaluate first.")
    return ImageScores(place, [row for row in rows if row["set"] in (MAIN, UNRELATED)], summary)


def pooled(folders: Sequence[ImageScores], resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """A method's estimates over all its folders: images pooled, prompts of one folder drawn together.

    KID is the mean of the folders' own, its interval from their standard errors; × 10³.
    """
    import torch

    from cdkit.evaluation.estimates import mean_with_interval

    estimates: dict[str, dict[str, Any]] = {}
    for metric in POOLED:
        values, blocks = [], []
        for folder in folders:
            for (prompt, _), value in folder.per_image(metric).items():
                values.append(value)
                blocks.append((folder.place, prompt))
        if values:
            scores = torch.tensor(values, dtype=torch.float64)
            estimates[metric] = asdict(mean_with_interval(scores, blocks, resamples=resamples, seed=seed))
    kids = [kid for folder in folders if (kid := folder.summary["metrics"].get("kid"))]
    if kids and len(kids) == len(folders):
        estimates["kid"] = _mean_kid(kids)
    return estimates


def worst_alignment(folders: Sequence[ImageScores]) -> dict[str, Any] | None:
    """The lowest mean image alignment of several folders, and which it is of; None where there is but one."""
    means = {}
    for folder in folders:
        values = list(folder.per_image(IMAGE_ALIGNMENT).values())
        if values:
            means[folder.place] = sum(values) / len(values), len(values)
    if len(means) < 2:
        return None
    worst = min(means, key=lambda place: means[place][0])
    value, number = means[worst]
    return {"value": value, "low": None, "high": None, "n": number, "of": Path(worst).name}


def changes(
    folders: Sequence[ImageScores], before: Sequence[ImageScores], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """By how much scores differ from those before, image by image of the same prompt and seed; empty where none is."""
    import torch

    from cdkit.evaluation.estimates import mean_with_interval

    estimates: dict[str, dict[str, Any]] = {}
    for metric, column in CHANGE_COLUMNS.items():
        after, earlier = dict[tuple[str, int], float](), dict[tuple[str, int], float]()
        for folder in folders:
            after |= folder.by_prompt_and_seed(metric)
        for folder in before:
            earlier |= folder.by_prompt_and_seed(metric)
        shared = [key for key in after if key in earlier]
        if shared:
            values = torch.tensor([after[key] - earlier[key] for key in shared], dtype=torch.float64)
            prompts = [prompt for prompt, _ in shared]
            estimates[column] = asdict(mean_with_interval(values, prompts, resamples=resamples, seed=seed))
    return estimates


def _mean_kid(kids: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    value = KID_SCALE * sum(kid["value"] for kid in kids) / len(kids)
    errors = [kid.get("standard_error") for kid in kids]
    estimate = {"value": value, "low": None, "high": None, "n": sum(kid["n"] for kid in kids)}
    if all(error is not None for error in errors):
        spread = 1.96 * KID_SCALE * sum(error**2 for error in errors if error is not None) ** 0.5 / len(kids)
        estimate |= {"low": value - spread, "high": value + spread}
    return estimate
