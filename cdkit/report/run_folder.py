"""A run's folder as the report sees it: its steps in order, what each made, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from cdkit.core.errors import CdkitError, InputError
from cdkit.core.fingerprints import REPORT_STAGE
from cdkit.core.manifest import MANIFEST_NAME, STARTED_NAME, Manifest, mistakes, read_manifest
from cdkit.core.storage import read_json

RECORD_NAME = "run.json"
DEFAULT_REPORT = "report"
State = Literal["done", "partial", "interrupted", "missing", "damaged"]


@dataclass(frozen=True)
class StepFolder:
    """One step of a run: its name, stage, settings as the pipeline gave them, folder and manifest."""

    name: str
    stage: str
    values: Mapping[str, Any]
    path: Path
    state: State
    manifest: Manifest | None = None

    @property
    def details(self) -> Mapping[str, Any]:
        return self.manifest.details if self.manifest is not None else {}

    @property
    def seconds(self) -> float | None:
        value = self.recorded("seconds")
        return float(value) if value is not None else None

    def recorded(self, name: str) -> Any:
        """A fact of when the step was made: `started`, `ended`, `peak_process_bytes`, …; None where there is none."""
        return self.manifest.run.get(name) if self.manifest is not None else None


@dataclass(frozen=True)
class RunFolder:
    """A run: its name, description, variables, and its steps without the reports, in the order they run."""

    path: Path
    name: str
    description: str
    variables: Mapping[str, Any]
    steps: tuple[StepFolder, ...]
    record: Mapping[str, Any] = field(default_factory=dict)

    def of_stage(self, *stages: str) -> list[StepFolder]:
        """The steps of some stages that have anything to show: what an interrupted step wrote counts."""
        return [step for step in self.steps if step.stage in stages and step.state not in ("missing", "damaged")]

    @property
    def started(self) -> str:
        """When the pipeline was last run, as an ISO time; empty for steps made one by one."""
        return str(self.record.get("started") or "")

    def named(self, values: Any) -> list[StepFolder]:
        """The steps among what a setting names: one input or several."""
        names = [values] if isinstance(values, str) else values if isinstance(values, list) else []
        return [step for name in names for step in self.steps if step.name == str(name)]

    def deltas_of(self, step: StepFolder) -> list[StepFolder]:
        """The steps whose deltas a step drew with."""
        return self.named(step.values.get("deltas"))

    def missing(self) -> list[str]:
        """One line per step that is not done."""
        what = {
            "missing": "was not run",
            "interrupted": "was interrupted: what it made so far is shown",
            "damaged": "has a damaged manifest",
        }
        lines = [f"{step.name} ({step.stage}) {what[step.state]}" for step in self.steps if step.state in what]
        short = [(step, step.manifest.shortfall) for step in self.steps if step.manifest and step.state == "partial"]
        return [*lines, *(f"{step.name} ({step.stage}) fell short: {shortfall}" for step, shortfall in short)]

    def resolve(self, value: str) -> str:
        """What an input value of a step means: another step's folder, or itself."""
        return str(self.path / value) if any(step.name == value for step in self.steps) else value


class _RunRecord(BaseModel):
    """What is read of the record that cdkit run writes."""

    pipeline: str | None = None
    description: str | None = None
    started: str | None = None
    vars: dict[str, Any] | None = None
    stages: dict[str, dict[str, Any] | None] | None = None


def read_run(path: Path) -> RunFolder:
    """Read a run folder, finished or not; raises InputError when it is none."""
    record = read_json(path / RECORD_NAME) if (path / RECORD_NAME).exists() else {}
    try:
        _RunRecord.model_validate(record)
    except ValidationError as error:
        said = "; ".join(mistakes(error))
        raise InputError(f"{path / RECORD_NAME} is no run record: {said}", hint="Run the pipeline again.") from error
    listed = record.get("stages") or {}
    names = list(listed) or _made(path)
    steps = [step for name in names if (step := _step(path, name, dict(listed.get(name) or {}))) is not None]
    if not steps:
        raise InputError(
            f"{path} holds no cdkit run.", hint="Give the folder that cdkit run wrote, such as runs/NAME."
        )
    name = str(record.get("pipeline") or path.resolve().name)
    return RunFolder(
        path, name, str(record.get("description") or ""), dict(record.get("vars") or {}), tuple(steps), record
    )


def report_folder(path: Path) -> Path:
    """Where a run's report goes: the folder of its own report step, else `report` inside it."""
    try:
        stages = read_json(path / RECORD_NAME).get("stages", {}) if (path / RECORD_NAME).exists() else {}
        reports = [name for name, values in stages.items() if values.get("run") == REPORT_STAGE]
    except (CdkitError, AttributeError):
        reports = []
    return path / (reports[-1] if reports else DEFAULT_REPORT)


def _made(path: Path) -> list[str]:
    """Steps of a folder without a record, in the order in which they ended."""
    if not path.is_dir():
        raise InputError(f"{path} does not exist.", hint="Give the folder that cdkit run wrote, such as runs/NAME.")
    folders = [
        entry for entry in path.iterdir() if (entry / MANIFEST_NAME).exists() or (entry / STARTED_NAME).exists()
    ]
    return [entry.name for entry in sorted(folders, key=lambda entry: (_ended(entry), entry.name))]


def _ended(folder: Path) -> str:
    try:
        manifest = read_manifest(folder)
    except CdkitError:
        return "~"
    return str(manifest.run.get("ended", "~")) if manifest is not None else "~"


def _step(path: Path, name: str, values: dict[str, Any]) -> StepFolder | None:
    """None for a step that makes reports: they are made from the others."""
    folder = path / name
    stage = str(values.pop("run", ""))
    try:
        manifest, started = read_manifest(folder), read_manifest(folder, STARTED_NAME)
    except CdkitError:
        return StepFolder(name, stage or "unknown", values, folder, "damaged")
    record = manifest or started
    stage = stage or (record.stage if record is not None else "unknown")
    if stage == REPORT_STAGE:
        return None
    state: State = "missing"
    if manifest is not None:
        state = "partial" if manifest.shortfall else "done"
    elif started is not None:
        state = "interrupted"
    return StepFolder(name, stage, values or (dict(record.config) if record else {}), folder, state, record)
