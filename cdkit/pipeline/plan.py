"""The plan of a run: for every step, whether it is done, stale (and why), or to be run."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cdkit.core.errors import CdkitError
from cdkit.core.fingerprints import Input
from cdkit.core.manifest import differences
from cdkit.core.storage import Folder
from cdkit.execute import Target
from cdkit.inputs import check_apart, resolve_inputs
from cdkit.pipeline.spec import Pipeline, Step
from cdkit.stages import STAGES

State = Literal["cached", "stale", "run"]


@dataclass(frozen=True)
class Planned:
    """What will become of one step, and why; sizes in bytes where they are known."""

    step: Step
    out: Path
    state: State
    reason: str
    input_bytes: int | None
    output_bytes: int | None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.step.name,
            "run": self.step.stage,
            "state": self.state,
            "reason": self.reason,
            "out": str(self.out),
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
        }


def plan(pipeline: Pipeline, folder: Path, forced: Set[str] = frozenset()) -> list[Planned]:
    """Compare every step's fingerprint with what its folder holds; nothing is written.

    forced: steps to run whatever they hold. Raises InputError that names every missing input at once.
    """
    fingerprints: dict[Path, str] = {}
    planned: list[Planned] = []
    rerun: set[str] = set()
    problems: list[CdkitError] = []
    for step in pipeline.steps:
        out = folder / step.name
        try:
            inputs = resolve_inputs(step.config, fingerprints)
        except CdkitError as error:
            problems.append(error)
            # Steps behind this one are still checked for inputs of their own.
            fingerprints[out.resolve()] = ""
            continue
        target = Target(Folder(out), STAGES[step.stage], step.config, inputs)
        fingerprints[out.resolve()] = target.identity.fingerprint
        state, reason = _state(target, step, forced, rerun)
        if state != "cached":
            rerun.add(step.name)
            try:
                check_apart(inputs, out)
            except CdkitError as error:
                problems.append(error)
        planned.append(Planned(step, out, state, reason, _input_bytes(inputs), _output_bytes(out, state)))
    # Stages that share an input have its problem in common.
    distinct = list({problem.message: problem for problem in problems}.values())
    if distinct:
        raise distinct[0] if len(distinct) == 1 else type(distinct[0])(_joined(distinct), hint=distinct[0].hint)
    return planned


def _state(target: Target, step: Step, forced: Set[str], rerun: Set[str]) -> tuple[State, str]:
    if step.name in forced:
        return "run", "forced"
    done = target.finished()
    if done is not None:
        return "cached", f"made {done.run.get('ended', '')}".strip()
    existing = target.existing()
    if existing is None:
        upstream = [need for need in step.needs if need in rerun]
        return "run", f"not made yet{' (after ' + ', '.join(upstream) + ')' if upstream else ''}"
    if target.continues():
        return "run", "interrupted: continues"
    reason = "; ".join(differences(existing.identity(), target.identity))
    return "stale", f"{reason} (what {' and '.join(target.kept())} made is kept)" if target.renews() else reason


def _input_bytes(inputs: dict[str, Input]) -> int | None:
    sizes = [source.size for item in inputs.values() for source in item.files]
    return sum(sizes) if sizes else None


def _output_bytes(out: Path, state: State) -> int | None:
    if state != "cached":
        return None
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def report_page(planned: Sequence[Planned]) -> Path | None:
    """The page that a run's last report is on; None where there is none."""
    return next((path for entry in reversed(planned) if (path := entry.out / "report.html").exists()), None)


def _joined(problems: list[CdkitError]) -> str:
    return f"{len(problems)} inputs cannot be used:\n" + "\n".join(f"  - {p.message}" for p in problems)
