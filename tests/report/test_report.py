from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from cdkit.core.config import parse_config
from cdkit.core.errors import InputError
from cdkit.execute import Result, execute
from cdkit.report.config import ReportConfig
from cdkit.report.picture_box import PictureBox
from cdkit.report.run_folder import read_run, report_folder
from cdkit.report.sections.images import images_section
from cdkit.report.subjects import run_subjects
from tests.support.pretend_run import (
    PROMPTS,
    TRICKY,
    pretend_run,
    run_stage,
    write_manifest,
    write_retrieved,
    write_run_record,
    write_trained,
)

VOID = {"meta", "link", "img", "br", "hr", "input"}


class _Page(HTMLParser):
    """Collects what a browser would load, every tag, and the text; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.events: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.pictures: list[str | None] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs).get("alt"))
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "srcset", "poster", "data", "action", "xlink:href", "background"):
                self.references.append(value or "")
            if name.startswith("on"):
                self.events.append(name)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        opened = self.open.pop() if self.open else "nothing"
        assert opened == tag, f"</{tag}> closes {opened}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.texts.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretend_run(tmp_path_factory.mktemp("runs") / "one", seeds=2, steps=2)


@pytest.fixture(scope="module")
def made(run: Path) -> Result:
    return _report(run)


def _report(run: Path, out: Path | None = None, **values: str) -> Result:
    config = parse_config(ReportConfig, {"run_folder": str(run), **values})
    return execute("report", config, out or report_folder(run), force=True)


def _page(out: Path) -> _Page:
    return _Page((out / "report.html").read_text(encoding="utf-8"))


def test_the_page_needs_no_network_and_no_script(made: Result) -> None:
    html = (made.out / "report.html").read_text(encoding="utf-8")
    page = _Page(html)
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    assert not set(page.tags) & {"script", "iframe", "object", "embed", "form", "base"}
    assert not page.events
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert len(style) == 1
    assert "@import" not in style[0]
    assert "url(" not in style[0]
    assert "prefers-color-scheme: dark" in style[0]
    assert 'name="viewport"' in html


def test_it_is_read_from_the_top(made: Result) -> None:
    page = _page(made.out)
    html = (made.out / "report.html").read_text(encoding="utf-8")
    assert "<h1>A striped star</h1>" in html
    assert "typed in prompts as <new1> star" in page.text
    links = [reference[1:] for reference in page.references if reference.startswith("#")]
    assert set(links) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    parts = [link for link in links if link in ("results", "scores", "set", "how")]
    assert parts == ["results", "scores", "set", "how"]
    assert [html.index(f'id="{part}"') for part in parts] == sorted(html.index(f'id="{part}"') for part in parts)
    assert all(page.pictures)
    # Folded in pages of trainings: the set is not what a reader came for.
    sheet = html[html.index('id="set"') : html.index('class="charts"', html.index('id="set"'))]
    assert sheet.index("<details>") < sheet.index("<img")


def test_captions_are_text_never_markup(made: Result) -> None:
    assert TRICKY in _page(made.out).text
    for name in ("report.html", "report.md", "README.md"):
        assert "<script" not in (made.out / name).read_text(encoding="utf-8")
    markdown = (made.out / "report.md").read_text(encoding="utf-8")
    assert r"\[link\]" in markdown
    assert "&lt;script&gt;" in markdown


def test_it_shows_every_part_of_the_run(made: Result) -> None:
    page = _page(made.out)
    assert page.headings == [
        "Striped star",
        "What is missing",
        "Results",
        "How sure",
        "The regularization set",
        "How it was made",
    ]
    for part in (
        "captions above the threshold",
        "near duplicate",
        "threshold 0.85",
        "ktn",
        "xyz</w> 0.41",
        "final loss 0.213",
        "text alignment",
        "cross-attention",
        "pictures-0.example",
        "merged (merge) was not run",
        "12 of 20 images found",
        "Python",
        "3.11.7",
        "1.2 GB",
        PROMPTS[1],
    ):
        assert part in page.text, part
    assert "secret-host" not in page.text


def test_pictures_are_real_and_the_file_is_small(made: Result) -> None:
    import base64
    import io

    from PIL import Image

    html = (made.out / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/(png|jpeg);base64,([^"]+)"', html)
    # 5 photos, 12 of the regularization set, 2 in the head, 2 + 4 samples, one attention strip.
    assert len(pictures) >= 5 + 12 + 2 + 6 + 1
    for kind, content in pictures:
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert image.format == kind.upper()
            image.load()
    assert made.manifest.details["bytes"] == len(html.encode()) < 10_000_000


def test_photos_stand_beside_before_and_after_at_the_same_seeds(run: Path) -> None:
    found = read_run(run)
    section = images_section(found, run_subjects(found), PictureBox(1_000_000))
    assert section is not None
    group = section.groups[0]
    assert group.title == "Striped star"
    assert [(photos.subject.phrase, photos.total, len(photos.shown)) for photos in group.photos] == [
        ("<new1> star", 5, 5)
    ]
    grid = group.grids[0]
    assert grid.prompt == "a photo of a star"
    assert list(grid.seeds) == [0, 1]
    assert [(row.label, row.detail, row.prompt) for row in grid.rows] == [
        ("before", "before", PROMPTS[0]),
        ("after", "images", PROMPTS[1]),
        ("after, without the new word", "images", PROMPTS[0]),
    ]
    assert all(shown is not None for row in grid.rows for shown in row.images)


def test_the_markdown_has_the_same_parts_and_its_pictures_beside_it(made: Result) -> None:
    text = (made.out / "report.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == ["What is missing", "Results", "How sure", "The regularization set", "How it was made"]
    linked = re.findall(r"!\[(?:\\.|[^\]\\])*\]\(([^)\s]+)\)", text)
    # Photos, samples, the contact sheet, three charts at least, the attention strip.
    assert len(linked) >= 5 + 6 + 12 + 3 + 1
    assert all((made.out / link).is_file() for link in linked)
    assert all(link.startswith("pictures/") for link in linked)
    shown = _page(made.out)
    for figure in re.findall(r"\*\*(0\.\d{3})\*\*", text):
        assert figure in shown.text


def test_pictures_of_an_earlier_report_are_gone(run: Path, tmp_path: Path) -> None:
    out = _report(run, tmp_path / "page").out
    (out / "pictures" / "old.png").write_bytes(b"old")
    before = sorted(path.name for path in (_report(run, out).out / "pictures").iterdir())
    assert "old.png" not in before
    assert before == sorted(path.name for path in (_report(run, out).out / "pictures").iterdir())


def test_the_yaml_repeats_the_run(run: Path, made: Result) -> None:
    document = yaml.safe_load((made.out / "pipeline.yaml").read_text(encoding="utf-8"))
    record = json.loads((run / "run.json").read_text())
    assert document["stages"] == record["stages"]
    assert f"cdkit run {made.out / 'pipeline.yaml'} --out {run}" in _page(made.out).text


def test_scores_and_sources_are_tables(made: Result) -> None:
    with (made.out / "scores.csv").open(encoding="utf-8") as handle:
        rows = {(row["set"], row["metric"]): row for row in csv.DictReader(handle)}
    assert float(rows["samples", "text_alignment"]["value"]) == pytest.approx(
        json.loads((made.out.parent / "scores" / "summary.json").read_text())["metrics"]["text_alignment"]["value"]
    )
    assert rows["base", "text_alignment"]["n"] == "2"
    with (made.out / "sources.csv").open(encoding="utf-8") as handle:
        sources = list(csv.DictReader(handle))
    assert len(sources) == 12
    assert sources[0]["caption"] == TRICKY


def test_the_model_card(made: Result, run: Path, tmp_path: Path) -> None:
    text = (made.out / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["license"] == "other"
    assert values["instance_prompt"] == PROMPTS[1]
    assert "base_model" not in values  # the embedded model has no hub id
    assert "# A striped star" in body
    page = _Page((made.out / "report.html").read_text(encoding="utf-8")).text
    assert "<new1> is typed as new1 in A1111 and Forge, as embedding:new1 in ComfyUI" in page
    report = (made.out / "report.md").read_text(encoding="utf-8")
    assert "`<new1>` is typed as `new1` in A1111 and Forge, as `embedding:new1` in ComfyUI" in report
    for entry in values["widget"]:
        assert (made.out / entry["output"]["url"]).exists()
    assert "run: train" in body
    record = json.loads((run / "run.json").read_text())
    shutil.copytree(run, tmp_path / "run")
    record["stages"]["tuned"]["base"] = "owner/model"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    again = _report(tmp_path / "run", licence="creativeml-openrail-m")
    values = yaml.safe_load((again.out / "README.md").read_text(encoding="utf-8").split("---\n", 2)[1])
    assert (values["base_model"], values["license"]) == ("owner/model", "creativeml-openrail-m")
    assert "license_name" not in values


def test_a_run_that_stopped_half_way(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_manifest(run / "picks", "tokens")
    write_trained(run / "tuned", finished=False, steps=30)
    write_run_record(run)
    result = _report(run)
    page = _page(result.out)
    assert "tuned (train) was interrupted" in page.text
    assert "images (sample) was not run" in page.text
    assert "How sure" not in page.headings
    assert (result.out / "README.md").read_text(encoding="utf-8").startswith("---\n")
    assert len(result.manifest.details["missing"]) == 8


def test_a_set_that_fell_short_is_all_there_is(tmp_path: Path) -> None:
    write_retrieved(tmp_path / "run" / "star-set", images=16)
    result = _report(tmp_path / "run")
    page, html = _page(result.out), (result.out / "report.html").read_text(encoding="utf-8")
    assert page.headings == ["star-set", "What fell short", "The regularization set", "How it was made"]
    assert "16 of 20 images found" in page.text
    assert "goes on where it stopped" not in page.text, "running it again would find no more"
    assert "Images like “a photo of a star”" in page.text
    # Its first pictures are what a reader came for; the others are folded.
    folded = html.index("<details><summary>More of it")
    assert (html.count("<img", 0, folded), html.count("<img", folded)) == (14, 2)


def test_damaged_parts_do_not_stop_the_page(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "scores" / "summary.json").write_text("{")
    (copy / "picks" / "picks.json").write_text('{"picks": [{}]}')
    (copy / "images" / "manifest.json").write_text("[]")
    (copy / "before" / "images" / "0000-0.png").write_bytes(b"broken")
    (copy / "tuned" / "metrics.csv").write_text("step,loss\n1,oops\n2,0.5\n")
    result = _report(copy)
    page = _page(result.out)
    assert "images (sample) has a damaged manifest" in page.text
    problems = " ".join(result.manifest.details["problems"])
    assert "scores: could not be read" in problems
    assert "step picks: could not be read" in problems
    assert "1 picture(s) cannot be decoded" in problems
    assert "How sure" not in page.headings


def test_a_folder_of_steps_without_a_record(tmp_path: Path) -> None:
    write_trained(tmp_path / "loose" / "tuned")
    result = _report(tmp_path / "loose")
    page = _page(result.out)
    assert "loose" in page.text
    assert "<new1>" in page.text
    # Their inputs are not known, so that no command could repeat them.
    for written in (page.text, (result.out / "report.md").read_text()):
        assert "cdkit run" not in written
        assert "one by one" in written


def test_too_many_pictures_are_left_out(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cdkit.report import stage

    monkeypatch.setattr(stage, "LIMIT_BYTES", 60_000)
    result = _report(run, tmp_path / "page")
    assert "pictures were left out" in _page(result.out).text
    assert result.manifest.details["bytes"] < 200_000


def test_the_papers_figures_stand_beside_ours(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    methods = {"custom-diffusion": str(copy / "scores"), "dreambooth": [str(copy / "scores")]}
    run_stage("compare", copy / "table", single=methods, multi={"joint": str(copy / "scores")})
    record = json.loads((copy / "run.json").read_text())
    record["stages"]["table"] = {"run": "compare"}
    (copy / "run.json").write_text(json.dumps(record))
    result = _report(copy)
    page = _page(result.out)
    for part in (
        "Beside the paper",
        "custom-diffusion",
        "0.795",
        "0.781",
        "one concept",
        "several concepts",
        "are equal here",
    ):
        assert part in page.text, part
    assert "| dreambooth (one concept) |" in (result.out / "report.md").read_text(encoding="utf-8")


def test_no_run_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "gone"):
        with pytest.raises(InputError, match="holds no cdkit run"):
            _report(folder, tmp_path / "page")
