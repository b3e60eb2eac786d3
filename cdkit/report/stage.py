"""Stage `report`: a run as one self-contained page, as Markdown, as a table of scores, and as a model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cdkit
from cdkit.core.errors import CdkitError
from cdkit.core.fingerprints import Input
from cdkit.core.formatting import command_line
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset
from cdkit.core.storage import Folder, atomic_path, write_csv, write_text
from cdkit.report.config import ReportConfig
from cdkit.report.page import Page
from cdkit.report.picture_box import PICTURES, PictureBox
from cdkit.report.run_folder import RunFolder, StepFolder, read_run
from cdkit.report.sections.comparison import comparison_section
from cdkit.report.sections.images import images_section
from cdkit.report.sections.regularization import (
    import_section,
    regularization_section,
    token_section,
)
from cdkit.report.sections.scores import scores_section
from cdkit.report.sections.stages import stages_section
from cdkit.report.sections.training import attention_section, merge_section, training_section, weight_section
from cdkit.report.subjects import run_subjects, run_title

Section = TypeVar("Section")
PIPELINE_NAME = "pipeline.yaml"
PAGE_NAME, TEXT_NAME, SCORES_NAME, SOURCES_NAME = "report.html", "report.md", "scores.csv", "sources.csv"
SCORE_COLUMNS = ("step", "set", "metric", "value", "low", "high", "n", "standard_error", "resampled")
# Base64 adds a third: the page stays below 10 MB.
LIMIT_BYTES = 6_500_000
SOURCE_COLUMNS = ("step", "key", "url", "source", "caption", "sha256", "licence", "attribution")


def report(config: ReportConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write report.html, report.md, scores.csv, sources.csv, pipeline.yaml and the model card README.md."""
    from cdkit.report.model_card import write_model_card
    from cdkit.report.page import render_page, render_text

    run = read_run(Path(config.run_folder))
    box = PictureBox(LIMIT_BYTES)
    page = gather(run, config.title, out.path, box)
    write_text(out / PIPELINE_NAME, page.yaml)
    write_text(out / PAGE_NAME, render_page(page))
    text = render_text(page)
    _write_pictures(box, text, out)
    write_text(out / TEXT_NAME, text)
    raw = page.scores.raw if page.scores is not None else []
    write_csv(out / SCORES_NAME, SCORE_COLUMNS, [[row.get(column) for column in SCORE_COLUMNS] for row in raw])
    sources = [asdict(source) for section in page.regularization for source in section.sources]
    rows = [[source[column] for column in SOURCE_COLUMNS] for source in sources]
    write_csv(out / SOURCES_NAME, SOURCE_COLUMNS, rows)
    try:
        write_model_card(page, config.licence, out)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        page.problems.append(f"the model card: could not be written ({type(error).__name__}: {error})")
    for problem in page.problems:
        context.progress.note(problem)
    size = (out / PAGE_NAME).stat().st_size
    details = {"bytes": size, "steps": len(run.steps), "missing": list(page.missing), "problems": page.problems}
    return Dataset("report", out.path, Counts(len(run.steps), len(run.steps)), details)


def _write_pictures(box: PictureBox, text: str, out: Folder) -> None:
    """The pictures that the Markdown links to, and none of an earlier report."""
    out.remove([PICTURES])
    for shown in box.shown:
        if f"({shown.link})" in text:
            with atomic_path(out / shown.link) as temporary:
                temporary.write_bytes(shown.content)


def gather(run: RunFolder, title: str | None, out: Path, box: PictureBox) -> Page:
    """Read every step's folder; one that cannot be read becomes a line under `problems`."""
    yaml = pipeline_yaml(run)
    subjects = run_subjects(run)
    page = Page(
        title=title or run_title(run, subjects),
        run=run,
        subjects=subjects,
        stages=stages_section(run),
        # Without a run's record the inputs of the steps are not known.
        command=command_line("cdkit", "run", out / PIPELINE_NAME, "--out", run.path) if run.record else "",
        yaml=yaml,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=cdkit.__version__,
        missing=run.missing(),
    )

    def whole(what: str, read: Callable[[], Section]) -> Section | None:
        """What is read of a run that may be damaged or of another version."""
        try:
            return read()
        except (CdkitError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            page.problems.append(f"{what}: could not be read ({type(error).__name__}: {error})")
            return None

    def each(steps: Sequence[StepFolder], read: Callable[[StepFolder], Section | None]) -> list[Section]:
        sections = [whole(f"step {step.name}", partial(read, step)) for step in steps]
        return [section for section in sections if section is not None]

    # Samples first: when room for pictures runs out, the contact sheet is what gets shorter.
    page.images = whole("samples", lambda: images_section(run, subjects, box))
    page.training = each(run.of_stage("train"), lambda step: training_section(step, box))
    page.attention = each(run.of_stage("attention"), lambda step: attention_section(step, box))
    page.imports = each(run.of_stage("import", "embed", "index"), import_section)
    sets = run.of_stage("retrieve", "class-images")
    page.regularization = each(sets, lambda step: regularization_section(step, box))
    page.tokens = each(run.of_stage("tokens"), token_section)
    page.merges = each(run.of_stage("merge"), merge_section)
    page.scores = whole("scores", lambda: scores_section(run, subjects, box))
    page.comparisons = each(run.of_stage("compare"), lambda step: comparison_section(step, box))
    page.weights = each(run.of_stage("weight-change"), lambda step: weight_section(step, box))
    page.left_out = box.left_out
    if box.unreadable:
        page.problems.append(f"{box.unreadable} picture(s) cannot be decoded and are not shown.")
    return page


def pipeline_yaml(run: RunFolder) -> str:
    """The run as a pipeline file, variables filled in: running it repeats exactly this."""
    import yaml

    stages = run.record.get("stages") or {step.name: {"run": step.stage, **step.values} for step in run.steps}
    document: dict[str, Any] = {"name": _safe_name(run.name)}
    if run.description:
        document["description"] = run.description
    document["stages"] = stages
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110))


def _safe_name(name: str) -> str:
    cleaned = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "-" for letter in name)
    return cleaned.lstrip("-_") or "run"
