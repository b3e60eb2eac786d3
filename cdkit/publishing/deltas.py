"""A delta as it is published: its file as it is, and a model card with trigger words and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cdkit.core.errors import CdkitError
from cdkit.core.manifest import Manifest, read_manifest
from cdkit.core.storage import Folder
from cdkit.deltas.delta import DELTA_NAME, Delta, delta_path, load_delta
from cdkit.evaluation.samples import read_sample_set
from cdkit.fetching.hub import HUB
from cdkit.pictures.regularization_set import refuse_unfinished
from cdkit.publishing.publication import CARD_NAME, MARK_NAME, Publication, mark
from cdkit.report.model_card import write_card_of
from cdkit.report.page import Page
from cdkit.report.picture_box import PICTURES, PictureBox
from cdkit.report.run_folder import RECORD_NAME, RunFolder, StepFolder, read_run
from cdkit.report.sections.scores import scores_section
from cdkit.report.sections.stages import stages_section
from cdkit.report.subjects import run_subjects

SAMPLES = "samples"


def delta_publication(path: Path, name: str, *, licence: str, samples: Path | None, scratch: Path) -> Publication:
    """What is published of a delta. name: of the repository; samples: a folder of cdkit sample for the card.

    Without it the samples of the run that the delta belongs to are taken. Raises InputError for a damaged delta, or a
    folder that holds no samples.
    """
    file = delta_path(path)
    if path.is_dir():
        refuse_unfinished(path)
    delta = load_delta(file)
    # Of a file alone, what lies beside it may be anything.
    run, step = _run_of(file, delta, samples, read_manifest(path) if path.is_dir() else None)
    settings, stages = _settings(delta), stages_section(run)
    page = Page(
        title=name, run=run, command="", yaml=settings, made="", version=delta.made_by, missing=(), stages=stages
    )
    # A card without scores is better than none.
    with suppress(CdkitError, OSError, LookupError, ValueError, TypeError, AttributeError):
        page.scores = scores_section(run, run_subjects(run), PictureBox(0))
    write_card_of(page, step, licence, Folder(scratch), delta=f"{HUB}{name}", file=DELTA_NAME)
    files: dict[str, Path | bytes] = {DELTA_NAME: file, CARD_NAME: scratch / CARD_NAME}
    files |= {f"{PICTURES}/{picture.name}": picture for picture in sorted((scratch / PICTURES).glob("*.png"))}
    base = str(_unplaced(delta.base))
    files[MARK_NAME] = mark("delta", method=delta.method, base=base)
    notes = _notes(delta, has_samples=f"{PICTURES}/sample-0.png" in files)
    return Publication("delta", files, notes=notes, base=base)


def _run_of(file: Path, delta: Delta, samples: Path | None, manifest: Manifest | None) -> tuple[RunFolder, StepFolder]:
    """The run that a delta's folder is a step of, or one made up of it alone, and the step."""
    folder = file.parent
    stage = manifest.stage if manifest is not None else "train"
    tokens = [token.text for token in delta.tokens]
    family = str(delta.settings.get("family", ""))
    details = {"tokens": tokens, "prompts": list(delta.prompts), "method": delta.method, "family": family}
    values = {"base": _unplaced(delta.base)}
    facts = Manifest(stage, 1, "", {}, {}, details=details)
    step = StepFolder(folder.resolve().name, stage, values, folder, "done", facts)
    run = RunFolder(folder.parent, step.name, "", {}, (step,))
    if manifest is not None and (folder.parent / RECORD_NAME).exists():
        whole = read_run(folder.parent)
        others = tuple(other for other in whole.steps if other.name != step.name)
        run = replace(run, description=whole.description, steps=(step, *others))
    if samples is not None:
        read_sample_set(samples)
        drawn = StepFolder(SAMPLES, "sample", {"deltas": [step.name]}, samples, "done", read_manifest(samples))
        others = tuple(other for other in run.steps if other.stage != "sample")
        run = replace(run, steps=(*others, drawn))
    return run, step


def _settings(delta: Delta) -> str:
    """What the delta was made with, as YAML, without the places of this machine."""
    import yaml

    values = {"method": delta.method, "base": delta.base, **delta.settings}
    return str(yaml.safe_dump(_unplaced(values), sort_keys=False, allow_unicode=True, width=110))


def _unplaced(value: Any) -> Any:
    """A value in which every absolute path is its last part alone."""
    if isinstance(value, Mapping):
        return {key: _unplaced(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unplaced(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _notes(delta: Delta, *, has_samples: bool) -> Sequence[str]:
    notes = []
    if _unplaced(dict(delta.settings)) != dict(delta.settings) or delta.base.startswith(("/", "~")):
        notes.append(
            "The delta's own header names folders of this machine (cdkit delta inspect shows it), and is published as "
            "it is; train with relative paths where that matters."
        )
    if not has_samples:
        notes.append("The card shows no samples: draw some with cdkit sample, and name their folder with --samples.")
    return notes
