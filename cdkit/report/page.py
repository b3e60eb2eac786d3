"""The page of a report: what its templates show, and how they are filled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.formatting import code_block, code_span, duration_text, markdown_text, size_text
from cdkit.report.run_folder import RunFolder
from cdkit.report.sections.images import ImagesSection
from cdkit.report.sections.regularization import ImportSection, RegularizationSection, TokenSection
from cdkit.report.sections.scores import ComparisonSection, ScoresSection, heading
from cdkit.report.sections.training import (
    AttentionSection,
    ConceptSection,
    MergeSection,
    TrainingSection,
    WeightSection,
)

if TYPE_CHECKING:
    from jinja2 import Environment


SCORES = ("text_alignment", "image_alignment", "drift")


TEMPLATES = Path(__file__).parent / "templates"


@cache
def environment() -> Environment:
    """The report's own templates."""
    return template_environment(TEMPLATES)


def template_environment(folder: Path) -> Environment:
    """Jinja with autoescape for .html templates; Markdown templates escape with `md`, `code` and `fenced`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(enabled_extensions=("html.jinja",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "md": markdown_text,
        "code": code_span,
        "fenced": code_block,
        "seconds": lambda seconds: "–" if seconds is None else duration_text(seconds),
        "size": lambda number: size_text(number) if number else "–",
        "value": value_text,
        "clock": clock_text,
    }
    return made


def render_page(page: Page) -> str:
    """The whole HTML page."""
    return environment().get_template("report.html.jinja").render(page=page, run=page.run)


def render_text(page: Page) -> str:
    """The same in Markdown, without pictures."""
    text = environment().get_template("report.md.jinja").render(page=page, run=page.run)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def value_text(value: Any) -> str:
    """A setting as a reader would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {value_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(value_text(item) for item in value)
    return "–" if value is None else str(value)


def clock_text(moment: str) -> str:
    """An ISO time to the minute, in UTC: `2026-11-24 14:04`."""
    return moment.replace("T", " ")[:16]


@dataclass
class Page:
    """Everything the templates show."""

    title: str
    run: RunFolder
    command: str
    yaml: str
    made: str
    version: str
    missing: Sequence[str]
    imports: Sequence[ImportSection] = ()
    regularization: Sequence[RegularizationSection] = ()
    tokens: Sequence[TokenSection] = ()
    concepts: Sequence[ConceptSection] = ()
    training: Sequence[TrainingSection] = ()
    merges: Sequence[MergeSection] = ()
    images: ImagesSection | None = None
    scores: ScoresSection | None = None
    comparisons: Sequence[ComparisonSection] = ()
    weights: Sequence[WeightSection] = ()
    attention: Sequence[AttentionSection] = ()
    problems: list[str] = field(default_factory=list)
    left_out: int = 0

    @property
    def highlights(self) -> list[tuple[str, str, str]]:
        """The figures a reader looks for first, of what the run has: name, value, and what qualifies it."""
        shown = []
        for section in self.regularization[:2]:
            shown.append((section.name, f"{section.accepted:,} images", f"of {section.asked:,} asked for"))
        for training in self.training[:2]:
            facts = dict(training.facts)
            if "steps" in facts:
                shown.append((training.name, f"{facts['steps']} steps", f"final loss {facts.get('final loss', '–')}"))
        for merge in self.merges[:1]:
            residual = dict(merge.facts).get("constraint residual")
            if residual is not None:
                shown.append((merge.name, residual, "constraint residual"))
        for scored in self.scores.main_sets[:2] if self.scores is not None else ():
            for metric in SCORES:
                if self.scores is not None and metric in scored.metrics:
                    bounds = self.scores.bounds(scored, metric)
                    shown.append((f"{scored.label}: {heading(metric)[0]}", self.scores.value(scored, metric), bounds))
        return shown

    @property
    def web_images(self) -> bool:
        """Whether any regularization image came from the web or from files."""
        return any(section.from_elsewhere for section in self.regularization)

    @property
    def seconds(self) -> float:
        """How long all steps took."""
        return sum(step.seconds or 0.0 for step in self.run.steps)

    @property
    def peak_bytes(self) -> int:
        """The largest memory a step's process took."""
        records = [step.manifest.run for step in self.run.steps if step.manifest is not None]
        return max((int(record.get("peak_process_bytes") or 0) for record in records), default=0)
