"""Report sections of the data: from captions to accepted images, the regularization set, and rare tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdkit.core.formatting import without_userinfo
from cdkit.core.shards import parts, read_parts
from cdkit.core.storage import read_json
from cdkit.evaluation.charts import bar_chart, histogram
from cdkit.fetching.urls import split_url
from cdkit.pictures.regularization_set import GENERATED, stated_licences
from cdkit.report.picture_box import Chart, PictureBox, Shown
from cdkit.report.run_folder import StepFolder

_SOURCE_FACTS = ("sha256", "licence", "attribution")
SHEET_IMAGES = 60
SHEET_SIDE = 150
HOSTS_SHOWN = 10
# The funnel's first step, which is not of pictures.
CAPTIONS_STEP = "captions above the threshold"
# The embedded pool's URLs: its images are rendered.
EMBEDDED_HOST = "127.0.0.1"
GENERATED_HOST, RENDERED_HOST = "drawn by the base model", "rendered by cdkit (the embedded pool)"


@dataclass(frozen=True)
class SetImage:
    """One image of a regularization set with what is written under it."""

    picture: Shown
    caption: str
    similarity: float | None


@dataclass(frozen=True)
class Source:
    """Where one image came from."""

    step: str
    key: str
    url: str
    source: str
    caption: str
    sha256: str
    licence: str = ""
    attribution: str = ""


@dataclass
class RegularizationSection:
    """One retrieval."""

    name: str
    asked: int
    accepted: int
    tried: int
    threshold: float | None
    prompts: Sequence[str]
    shortfall: str
    funnel: Sequence[tuple[str, int]]
    funnel_chart: Chart | None
    rejected: Sequence[tuple[str, int]]
    histogram_chart: Chart | None
    images: list[SetImage] = field(default_factory=list)
    total: int = 0
    sources: list[Source] = field(default_factory=list)

    @property
    def captions(self) -> str:
        """`of 1,400 captions above the threshold`; empty where none were searched."""
        number = dict(self.funnel).get(CAPTIONS_STEP)
        return f"of {number:,} {CAPTIONS_STEP}" if number is not None else ""

    @property
    def generated(self) -> int:
        """How many of the images a base model drew."""
        return sum(source.source == GENERATED for source in self.sources)

    @property
    def from_elsewhere(self) -> int:
        """How many came from the web or from files, with whatever rights their owners have."""
        return sum(_host(source) not in (GENERATED_HOST, RENDERED_HOST) for source in self.sources)

    @property
    def licences(self) -> list[tuple[str, int]]:
        """The licences of what came from elsewhere, in their pools' words, and how often each stands."""
        elsewhere = (each for each in self.sources if _host(each) not in (GENERATED_HOST, RENDERED_HOST))
        return stated_licences(each.licence for each in elsewhere)

    @property
    def hosts(self) -> list[tuple[str, int]]:
        """The hosts most images came from, and how many from all others."""
        counts = Counter(_host(source) for source in self.sources)
        shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        rest = sum(number for _, number in shown[HOSTS_SHOWN:])
        return [*shown[:HOSTS_SHOWN], *([(f"{len(shown) - HOSTS_SHOWN} other hosts", rest)] if rest else [])]


def regularization_section(step: StepFolder, pictures: PictureBox) -> RegularizationSection:
    """What a retrieve step found, or a class-images step drew; of an interrupted one whatever images it wrote."""
    details = step.details
    steps = [(str(entry["step"]), int(entry["count"])) for entry in details.get("funnel", [])]
    threshold = details.get("threshold")
    prompts = details.get("prompts") or step.values.get("prompts") or []
    section = RegularizationSection(
        name=step.name,
        asked=int(details.get("asked") or step.values.get("count") or 0),
        accepted=int(details.get("accepted") or 0),
        tried=int(details.get("tried") or 0),
        threshold=float(threshold) if threshold is not None else None,
        prompts=[str(prompt) for prompt in prompts],
        shortfall=step.manifest.shortfall if step.manifest is not None else "",
        funnel=steps,
        funnel_chart=pictures.chart(
            "How many pictures were left at each step", _funnel_chart(steps, step.name), f"funnel {step.name}"
        ),
        rejected=_most_first(details.get("rejected", {})),
        histogram_chart=pictures.chart(
            "How similar the accepted captions are to the prompts",
            _histogram(details.get("similarities"), threshold, step.name),
            f"similarities {step.name}",
        ),
    )
    _add_images(section, step.path / "images", pictures)
    section.accepted = section.accepted or section.total
    return section


def _funnel_chart(steps: Sequence[tuple[str, int]], name: str) -> str:
    """The pictures left at each step, which never grow: captions and drawn pictures are counted elsewhere."""
    drawn = dict(steps).get("generated", 0)
    left = [
        (step, number - drawn if step == "accepted" else number)
        for step, number in steps
        if step not in (CAPTIONS_STEP, "generated")
    ]
    return bar_chart(left, title=f"From candidates to accepted images, {name}") if left else ""


def _histogram(similarities: Any, threshold: float | None, name: str) -> str:
    if not similarities or not similarities.get("counts"):
        return ""
    return histogram(
        similarities["edges"],
        similarities["counts"],
        marker=(float(threshold), f"threshold {threshold:g}") if threshold is not None else None,
        x_label="similarity of caption and prompt",
        y_label="images",
        title=f"Similarities of the accepted captions, {name}",
    )


def _add_images(section: RegularizationSection, folder: Path, pictures: PictureBox) -> None:
    if not parts(folder):
        return
    wanted = ["key", "image", "caption", "similarity", "url", "source", "sha256", "licence", "attribution"]
    for table in read_parts(folder):
        for row in table.select([name for name in wanted if name in table.column_names]).to_pylist():
            caption = str(row.get("caption") or "")
            section.total += 1
            key, url, source, *facts = (str(row.get(name) or "") for name in ("key", "url", "source", *_SOURCE_FACTS))
            section.sources.append(Source(section.name, key, without_userinfo(url), source, caption, *facts))
            if len(section.images) < SHEET_IMAGES:
                content = (row.get("image") or {}).get("bytes")
                name = f"{section.name} {key}"
                shown = pictures.content(content, SHEET_SIDE, name) if content else None
                if shown is not None:
                    # A drawn image has the prompt itself for a caption: there is nothing to compare.
                    similarity = None if row.get("source") == GENERATED else row.get("similarity")
                    section.images.append(SetImage(shown, caption, similarity))


def _most_first(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """Reasons as words with how often each stands, the most frequent first."""
    most = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return [(str(reason).replace("_", " "), int(number)) for reason, number in most]


def _host(source: Source) -> str:
    if source.source == GENERATED:
        return GENERATED_HOST
    parts = split_url(source.url)
    host = (parts.hostname if parts is not None else None) or source.source or "not recorded"
    return RENDERED_HOST if host == EMBEDDED_HOST else host


@dataclass(frozen=True)
class ImportSection:
    """What an import, embed or index step kept of its pools."""

    name: str
    stage: str
    read: int
    kept: int
    rejected: Sequence[tuple[str, int]]
    facts: Sequence[tuple[str, str]]


def import_section(step: StepFolder) -> ImportSection | None:
    """Rows in, kept and rejected by reason; None when the step counted nothing."""
    counts = step.manifest.counts if step.manifest is not None else {}
    if not counts.get("in"):
        return None
    simple = {
        key: value for key, value in step.details.items() if isinstance(value, int | float | str) and value != ""
    }
    return ImportSection(
        step.name,
        step.stage,
        int(counts["in"]),
        int(counts.get("kept", 0)),
        _most_first(counts.get("rejected", {})),
        [
            (key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
            for key, value in simple.items()
        ],
    )


@dataclass(frozen=True)
class TokenSection:
    """The rare tokens a step picked."""

    name: str
    tokenizer: str
    picks: Sequence[tuple[str, int, int, str]]
    passed_over: Sequence[tuple[str, int]]


def token_section(step: StepFolder) -> TokenSection | None:
    """The picks with their ids, counts and nearest tokens; None when the step made none."""
    if not (step.path / "picks.json").exists():
        return None
    picked = read_json(step.path / "picks.json")
    picks = [
        (
            str(pick["token"]),
            int(pick["token_id"]),
            int(pick["count"]),
            ", ".join(f"{near['token']} {near['similarity']:.2f}" for near in pick.get("neighbours") or ()),
        )
        for pick in picked.get("picks", [])
    ]
    return TokenSection(step.name, str(picked.get("tokenizer", "")), picks, _most_first(picked.get("rejected", {})))
