"""Report section of the stages: what each took and when it was made, and the versions that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdkit.report.run_folder import RunFolder, StepFolder


@dataclass(frozen=True)
class StageRow:
    """One stage of the run. seconds and peak_bytes are those of when it was made, `made`, an ISO time; cached: whether
    that was before the last run; note: what they leave out."""

    name: str
    stage: str
    state: str
    cached: bool
    seconds: float | None
    peak_bytes: int | None
    made: str
    note: str
    seeds: str
    fingerprint: str


@dataclass(frozen=True)
class Versions:
    """What made some stages, `all` where nothing else made any."""

    text: str
    stages: str


@dataclass(frozen=True)
class StagesSection:
    """All stages, what they took together, and the versions."""

    rows: Sequence[StageRow]
    versions: Sequence[Versions]
    seconds: float
    seconds_now: float | None
    peak_bytes: int


def stages_section(run: RunFolder) -> StagesSection:
    """Times and peaks as the manifests have them; what was found done is told from what the last run made."""
    rows = [_row(step, run.started) for step in run.steps]
    made = [row for row in rows if row.seconds is not None]
    now = [row.seconds or 0.0 for row in made if not row.cached]
    return StagesSection(
        rows,
        _versions(run.steps),
        sum(row.seconds or 0.0 for row in made),
        sum(now) if len(now) < len(made) else None,
        max((row.peak_bytes or 0 for row in rows), default=0),
    )


def _row(step: StepFolder, run_started: str) -> StageRow:
    ended, peak = str(step.recorded("ended") or ""), step.recorded("peak_process_bytes")
    settings = step.manifest.config if step.manifest is not None else {}
    return StageRow(
        name=step.name,
        stage=step.stage,
        state=step.state,
        # Both are UTC to the second, written alike: their order as texts is their order in time.
        cached=bool(run_started and ended) and ended < run_started,
        seconds=step.seconds,
        peak_bytes=int(peak) if peak else None,
        made=ended,
        note="without what an earlier, interrupted run had made" if step.recorded("continued") else "",
        seeds=_seeds(settings),
        fingerprint=step.manifest.fingerprint[:12] if step.manifest is not None else "",
    )


def _seeds(settings: Mapping[str, Any]) -> str:
    """`0 to 3` of a stage that draws with several, the one that others begin with, or none."""
    number, first = settings.get("seeds"), settings.get("first_seed")
    if isinstance(number, int) and isinstance(first, int) and number > 0:
        return f"{first} to {first + number - 1}" if number > 1 else str(first)
    return str(settings["seed"]) if "seed" in settings else ""


def _versions(steps: Sequence[StepFolder]) -> list[Versions]:
    """Each combination of versions once, with the stages it made."""
    made: dict[str, list[str]] = {}
    for step in steps:
        libraries = step.recorded("versions")
        named = {"cdkit": step.recorded("cdkit"), "Python": step.recorded("python")}
        named |= libraries if isinstance(libraries, Mapping) else {}
        text = ", ".join(f"{name} {version}" for name, version in named.items() if version)
        if text:
            made.setdefault(text, []).append(step.name)
    return [Versions(text, "all" if len(made) == 1 else ", ".join(names)) for text, names in made.items()]
