"""Drawing and judging from Python: samples, their scores, and the report of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from cdkit.api.places import Place, base_of, folder_of, list_of, named, optional_text, photos_folder, text_of, texts_of
from cdkit.api.progress import ProgressCallback
from cdkit.api.results import ReportFolder, SampleFolder, ScoreFolder
from cdkit.api.running import config_of, make
from cdkit.evaluation.config import EvaluateConfig
from cdkit.report.config import ReportConfig
from cdkit.report.run_folder import report_folder
from cdkit.sampling.config import SampleConfig
from cdkit.sampling.schedulers import SchedulerName

if TYPE_CHECKING:
    from cdkit.api.places import Photos


def sample(
    deltas: Place | Iterable[Place] | None = None,
    *,
    prompts: str | Iterable[str] = (),
    out: Place | None = None,
    base: Place | None = None,
    scale: float = 1.0,
    prompts_file: Place | None = None,
    index: Place | None = None,
    captions_count: int = 64,
    without: str | Iterable[str] = (),
    negative_prompt: str = "",
    seeds: int = 4,
    first_seed: int = 0,
    scheduler: SchedulerName = "ddim",
    steps: int | None = None,
    eta: float = 0.0,
    guidance: float = 6.0,
    preset: Literal["paper"] | None = None,
    resolution: int | None = None,
    precision: Literal["no", "bf16", "fp16"] = "no",
    batch_size: int = 8,
    device: str | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: ProgressCallback | bool | None = None,
) -> SampleFolder:
    """Draw every prompt with every seed, with a delta, several, or the base model as it is (None).

    base: None stands for the model that the first delta names, or `embedded`. The other arguments are the options of
    `cdkit sample`.
    """
    places = texts_of(() if deltas is None else deltas)
    plain: dict[str, Any] = {
        "deltas": places,
        "base": base_of(base, places),
        "prompts": list_of(prompts),
        "prompts_file": optional_text(prompts_file),
        "index": optional_text(index),
        "without": list_of(without),
    }
    config = config_of(SampleConfig, locals() | plain)
    return make(SampleFolder, "sample", config, out=out, force=force, progress=progress)


def evaluate(
    samples: Place,
    *,
    out: Place | None = None,
    concepts: Mapping[str, Photos] | None = None,
    compare: Mapping[str, Place] | None = None,
    reference: Place | None = None,
    base_samples: Place | None = None,
    unrelated: Place | None = None,
    base_unrelated: Place | None = None,
    encoder: str | None = None,
    dino: str | None = None,
    tokens: str | Iterable[str] = (),
    preset: Literal["paper"] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: ProgressCallback | bool | None = None,
) -> ScoreFolder:
    """Score samples: text and image alignment, KID, drift, overfitting, each with a 95 % interval.

    The other arguments are the options of `cdkit evaluate`.
    """
    inputs = {"reference": reference, "base_samples": base_samples}
    inputs |= {"unrelated": unrelated, "base_unrelated": base_unrelated}
    plain: dict[str, Any] = {
        "samples": text_of(samples),
        "concepts": {name: photos_folder(photos) for name, photos in named(concepts, "photos").items()},
        "compare": {name: text_of(place) for name, place in named(compare, "samples").items()},
        "tokens": list_of(tokens),
    }
    plain |= {name: optional_text(place) for name, place in inputs.items()}
    config = config_of(EvaluateConfig, locals() | plain)
    return make(ScoreFolder, "evaluate", config, out=out, force=force, progress=progress)


def make_report(
    run_folder: Place,
    *,
    out: Place | None = None,
    title: str | None = None,
    licence: str = "other",
    progress: ProgressCallback | bool | None = None,
) -> ReportFolder:
    """Make the report of a run's folder, anew each time: one HTML page, Markdown, scores and a model card."""
    folder = folder_of(run_folder)
    config = config_of(ReportConfig, locals() | {"run_folder": str(folder)})
    target = report_folder(folder) if out is None else out
    return make(ReportFolder, "report", config, out=target, force=True, progress=progress, replace_other=True)
