"""The page of a report: what its templates show, and how they are filled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.templates import markdown_of, template_environment
from cdkit.report.run_folder import RunFolder
from cdkit.report.sections.comparison import ComparisonSection
from cdkit.report.sections.images import ImagesSection
from cdkit.report.sections.regularization import ImportSection, RegularizationSection, TokenSection
from cdkit.report.sections.scores import ScoresSection, ScoreTable, heading
from cdkit.report.sections.stages import StagesSection
from cdkit.report.sections.training import AttentionSection, MergeSection, TrainingSection, WeightSection
from cdkit.report.subjects import Subject, joined

if TYPE_CHECKING:
    from jinja2 import Environment


# The scores in the head of the page, where a run is not about very many concepts.
SCORES = ("image_alignment", "text_alignment", "drift")
TILED = 4


TEMPLATES = Path(__file__).parent / "templates"


@cache
def environment() -> Environment:
    """The report's own templates."""
    return template_environment(TEMPLATES)


def render_page(page: Page) -> str:
    """The whole HTML page."""
    return environment().get_template("report.html.jinja").render(page=page, run=page.run)


def render_text(page: Page) -> str:
    """The same in Markdown, whose pictures are files beside it."""
    return markdown_of(environment().get_template("report.md.jinja").render(page=page, run=page.run))


@dataclass(frozen=True)
class Figure:
    """One figure of a tile: what it is, itself, what qualifies it, and whether it is better than before."""

    name: str
    value: str
    note: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Tile:
    """What the head of the page says of one concept, or of several in one picture."""

    title: str
    figures: Sequence[Figure]


# A part of the page: its address, its title, and its own parts.
Part = tuple[str, str, list[tuple[str, str]]]


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
    stages: StagesSection
    subjects: Sequence[Subject] = ()
    imports: Sequence[ImportSection] = ()
    regularization: Sequence[RegularizationSection] = ()
    tokens: Sequence[TokenSection] = ()
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
    def base(self) -> str:
        """The base model that the concepts were taught to; empty where none were."""
        trained = self.run.of_stage("train")
        return str(trained[0].values.get("base") or EMBEDDED) if trained else ""

    @property
    def photos(self) -> str:
        """`5 photos each`, `4 and 7 photos`; empty where none are known."""
        groups = self.images.groups if self.images is not None else ()
        numbers = [str(group.alone.total) for group in groups if group.alone is not None and group.alone.total]
        if len(numbers) > 1 and len(set(numbers)) == 1:
            return f"{numbers[0]} photos each"
        return f"{joined(numbers)} {'photo' if numbers == ['1'] else 'photos'}" if numbers else ""

    @property
    def tiles(self) -> list[Tile]:
        """The figures a reader looks for first: scores by concept, with the base model's; else what was found."""
        tables = self.scores.tables if self.scores is not None and len(self.scores.tables) <= TILED else ()
        if tables or self.training:
            return [Tile(table.title, figures) for table in tables if (figures := _figures(table))]
        return [
            Tile(section.name, [Figure("", f"{section.accepted:,} images", f"of {section.asked:,} asked for")])
            for section in self.regularization[:TILED]
        ]

    @property
    def contents(self) -> list[Part]:
        """The parts of the page in order."""
        groups = self.images.groups if self.images is not None else ()
        sets = [(f"set-{number}", section.name) for number, section in enumerate(self.regularization, 1)]
        how = [
            ("stages", "Stages", True),
            ("training", "Training", bool(self.training or self.merges)),
            ("tokens", "Rare tokens", bool(self.tokens)),
            ("inside", "Inside the model", bool(self.weights or self.attention)),
            ("repeat", "To repeat it", True),
            ("sources", "Sources and licences", bool(self.regularization or self.subjects)),
        ]
        every: list[tuple[Part, bool]] = [
            (("results", "Results", [(f"result-{group.anchor}", group.title) for group in groups]), bool(groups)),
            (("scores", "How sure", []), bool(self.scores or self.comparisons)),
            (("set", self.set_title, sets if len(sets) > 1 else []), bool(self.imports or self.regularization)),
            (("how", "How it was made", [(anchor, title) for anchor, title, there in how if there]), True),
        ]
        return [part for part, there in every if there]

    @property
    def unfinished(self) -> bool:
        """Whether a step is not done, or could not be read."""
        return bool(self.problems) or any(step.state not in ("done", "partial") for step in self.run.steps)

    @property
    def notice(self) -> str:
        """What the part on what is not as asked is called."""
        return "What is missing" if self.unfinished else "What fell short"

    @property
    def set_title(self) -> str:
        """What the part on pictures from captions is called."""
        if not self.regularization:
            return "The caption index"
        return "The regularization sets" if len(self.regularization) > 1 else "The regularization set"

    @property
    def web_images(self) -> bool:
        """Whether any regularization image came from the web or from files."""
        return any(section.from_elsewhere for section in self.regularization)


def _figures(table: ScoreTable) -> list[Figure]:
    """What a step was about, and how the base model does there."""
    figures = []
    for metric in SCORES:
        if metric in table.main.metrics:
            base, bounds = table.base, table.main.bounds(metric)
            before = f"before {base.value(metric)}" if base is not None and metric in base.metrics else ""
            note = ", ".join(part for part in (bounds, before) if part)
            mark = table.mark(table.main, metric)
            figures.append(Figure(heading(metric)[0], table.main.value(metric), note, mark))
    return figures
