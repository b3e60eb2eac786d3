"""Runs a planned pipeline step by step; what is cached is left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cdkit.core.config import ThreadedConfig
from cdkit.core.errors import CdkitError, OutputError, PartialError, writing
from cdkit.core.formatting import duration_text, redacted
from cdkit.core.manifest import read_manifest
from cdkit.core.protocols import Progress
from cdkit.core.storage import Folder, flush_names, write_json
from cdkit.execute import Result, execute
from cdkit.pipeline.live_page import RunPage
from cdkit.pipeline.plan import Planned, plan, report_page
from cdkit.pipeline.spec import Pipeline
from cdkit.pipeline.watch import RunStatus, RunWatch

RECORD_NAME = "run.json"


@dataclass(frozen=True)
class RunResult:
    """How a run ended: one result per step, and the report page when a step made one."""

    folder: Path
    results: tuple[Result, ...]
    names: tuple[str, ...]
    report: Path | None

    @property
    def shortfalls(self) -> list[str]:
        """One line per step that found less than it was asked for."""
        pairs = zip(self.names, self.results, strict=True)
        return [f"{name}: {result.manifest.shortfall}" for name, result in pairs if result.manifest.shortfall]

    def as_json(self) -> dict[str, Any]:
        stages = [
            {"name": name, "state": result.state, "seconds": round(result.seconds, 3), "out": str(result.out)}
            for name, result in zip(self.names, self.results, strict=True)
        ]
        return {"stages": stages, "report": str(self.report) if self.report else None}


def forced_steps(pipeline: Pipeline, *, force: bool, from_step: str | None) -> set[str]:
    """The steps to run again although they are done; raises ConfigError for a step that is not there."""
    descendants = pipeline.descendants(from_step) if from_step else set()
    return {step.name for step in pipeline.steps} if force else descendants


def run(
    pipeline: Pipeline,
    folder: Path,
    *,
    forced: set[str],
    stop_after: str | None,
    progress: Progress,
    threads: int | None = None,
    watch: Callable[[RunStatus], None] = lambda status: None,
) -> RunResult:
    """Run what the plan says, in order. A step that falls short does not stop the rest; one that found nothing does.

    stop_after: run only this step and what it needs; threads: CPU threads of steps that do not say themselves; watch:
    called with the run's status as it changes, which live.html in the folder shows, too. Raises ConfigError when there
    is no such step.
    """
    chosen = pipeline.up_to(stop_after) if stop_after else pipeline
    with writing(folder):
        _check_folder(folder)
        planned = plan(chosen, folder, forced)
        with Folder(folder).lock():
            record = {**_record(pipeline), "started": datetime.now(UTC).isoformat(timespec="seconds")}
            Folder(folder).remove_temporaries(below=False)
            write_json(folder / RECORD_NAME, redacted(record))
            # After a power loss nothing else may be in a folder that does not say it is a run's: it would be refused.
            flush_names(folder, below=False)
            results = _run_steps(pipeline.name, folder, planned, forced, progress, threads, watch)
    return RunResult(folder, tuple(results), tuple(entry.step.name for entry in planned), report_page(planned))


def _run_steps(
    name: str,
    folder: Path,
    planned: Sequence[Planned],
    forced: set[str],
    progress: Progress,
    threads: int | None,
    watch: Callable[[RunStatus], None],
) -> list[Result]:
    page = RunPage(folder)

    def show(status: RunStatus, must: bool) -> None:
        page.update(status, must)
        watch(status)

    watched = RunWatch(name, folder, planned, show)
    results = []
    with watched.running():
        for place, entry in enumerate(planned):
            watched.begin(place)
            if entry.state != "cached":
                progress.note(_announced(watched.status, entry))
            result = _run_step(entry, forced, watched.progress(progress), threads)
            watched.end(place, result.state, whole=not result.manifest.run.get("continued"))
            if result.state != "cached" and entry.state != "cached":
                progress.note(_finished(watched.status, place))
            results.append(result)
    return results


def _announced(status: RunStatus, entry: Planned) -> str:
    """`[4/18] star-tuned: train`, why it is made again if it is, and what is known to be left of the run."""
    why = "" if entry.reason.startswith("not made yet") else f", {entry.reason}"
    left = status.left.text()
    return f"{status.place()}: {entry.step.stage}{why}{f'; {left} of the run' if left else ''}"


def _finished(status: RunStatus, place: int) -> str:
    stage = status.stages[place]
    state = "done" if stage.state == "done" else "done with less than asked for"
    return f"[{place + 1}/{len(status.stages)}] {stage.name}: {state} in {duration_text(stage.seconds or 0.0)}"


def _run_step(entry: Planned, forced: set[str], progress: Progress, threads: int | None) -> Result:
    name, config = entry.step.name, entry.step.config
    if isinstance(config, ThreadedConfig) and config.threads is None:
        config = config.model_copy(update={"threads": threads})
    try:
        result = execute(
            entry.step.stage,
            config,
            entry.out,
            progress=progress,
            force=name in forced,
            replace_other=True,
        )
    except CdkitError as error:
        error.message = f"stage {name!r}: {error.message}"
        raise
    if result.manifest.shortfall and not result.manifest.counts.get("kept"):
        # What takes it in would fail, and say so in other words.
        raise PartialError(
            f"stage {name!r}: {result.manifest.shortfall}",
            hint="Nothing was found, so that the run stops here; change this stage's settings and run it again.",
        )
    return result


def _record(pipeline: Pipeline) -> dict[str, Any]:
    return {
        "pipeline": pipeline.name,
        "description": pipeline.description,
        "vars": dict(pipeline.variables),
        "stages": {step.name: {"run": step.stage, **dict(step.values)} for step in pipeline.steps},
    }


def _check_folder(folder: Path) -> None:
    entries = Folder(folder).entries()
    ours = RECORD_NAME in entries or all(read_manifest(folder / name) for name in entries)
    if entries and not ours:
        raise OutputError(
            f"{folder} is not empty and holds no cdkit run.",
            hint="Choose another --out, or empty the folder yourself.",
        )
