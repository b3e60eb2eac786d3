"""How long a run will still take, by what was measured: never by what anybody guesses."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cdkit.core.config import StageConfig, canonical
from cdkit.core.errors import CdkitError
from cdkit.core.formatting import duration_text
from cdkit.core.manifest import Manifest, read_manifest
from cdkit.pipeline.spec import Step

Kind = tuple[str, str, str]


@dataclass(frozen=True)
class TimeLeft:
    """Seconds that are known to be left, and how many stages nothing is known of."""

    seconds: float
    unknown: int = 0

    def text(self) -> str:
        """`about 3 min 10 s left`; `at least …` where some stages are unknown; nothing where nothing is known."""
        if self.seconds < 1:
            return ""
        time = duration_text(self.seconds) if self.seconds >= 60 else f"{self.seconds:.0f} s"
        return f"{'at least' if self.unknown else 'about'} {time} left"


@dataclass
class Pace:
    """What stages took on this machine: seconds and work of each that is done, by kind of stage."""

    _measured: dict[Kind, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def learn(self, step: Step, seconds: float) -> None:
        """Note what a step took."""
        self._measured[_kind(step)].append((seconds, work(step.config)))

    def learn_earlier(self, step: Step, out: Path) -> None:
        """Note what a step took in an earlier run, where its manifest is of this machine and of the same settings."""
        manifest = _manifest(out)
        if manifest is None or manifest.stage != step.stage or manifest.config != canonical(step.config):
            return
        # What was continued says how long the rest took, and another machine says nothing of this one.
        seconds, elsewhere = manifest.run.get("seconds"), manifest.run.get("host") != platform.node()
        if isinstance(seconds, int | float) and not elsewhere and not manifest.run.get("continued"):
            self.learn(step, float(seconds))

    def expected(self, step: Step) -> float | None:
        """Seconds that a step will take, in proportion to its work; None where none of its kind was measured."""
        measured = self._measured.get(_kind(step))
        if not measured:
            return None
        rate = sum(seconds for seconds, _ in measured) / sum(amount for _, amount in measured)
        return rate * work(step.config)

    def left(self, waiting: Iterable[Step], running: Running | None = None) -> TimeLeft:
        """What the steps that wait, and the one that runs, will still take."""
        every = [self.expected(step) for step in waiting]
        known = [seconds for seconds in every if seconds is not None]
        now = self._of_running(running) if running is not None else TimeLeft(0.0)
        return TimeLeft(sum(known) + now.seconds, len(every) - len(known) + now.unknown)

    def _of_running(self, running: Running) -> TimeLeft:
        measured, expected = running.task_left, self.expected(running.step)
        if measured is not None and running.step.stage == "train":
            return TimeLeft(measured)
        if expected is not None:
            return TimeLeft(max(measured or 0.0, expected - running.seconds, 0.0))
        # Of a stage's tasks one is measured; what comes after it is not.
        return TimeLeft(measured or 0.0, 1)


@dataclass(frozen=True)
class Running:
    """The step in progress. seconds: since it began; task_left: of its task, by the rate so far; None without one."""

    step: Step
    seconds: float
    task_left: float | None


def work(config: StageConfig) -> float:
    """How much a stage has to do, in a unit of its kind; 1 where its settings do not say."""
    # The plan has read them already; `cdkit run --help` does without.
    from cdkit.retrieval.config import ClassImagesConfig, RetrieveConfig
    from cdkit.sampling.config import SampleConfig
    from cdkit.training.config import TrainConfig

    if isinstance(config, TrainConfig):
        return float(config.recipe().steps)
    if isinstance(config, SampleConfig):
        return float(max(1, len(config.prompts)) * config.seeds * config.drawn_with()[1])
    return float(config.count) if isinstance(config, RetrieveConfig | ClassImagesConfig) else 1.0


def _kind(step: Step) -> Kind:
    """What makes two steps comparable: the stage, its base model, its method."""
    return step.stage, str(getattr(step.config, "base", "")), str(getattr(step.config, "method", ""))


def _manifest(out: Path) -> Manifest | None:
    try:
        return read_manifest(out)
    except CdkitError:  # said when the stage is made
        return None
