"""What the functions return: short names, tables, pictures, and folders that the next call takes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

import cdkit
from cdkit.api.progress import ProgressEvent
from cdkit.api.results import SetFolder
from cdkit.core.errors import ConfigError, InputError, MissingLibraryError
from cdkit.core.fingerprints import cache_folder
from tests.api.conftest import Work


def test_every_result_has_a_short_name(work: Work) -> None:
    names = [repr(result) for result in vars(work).values()]
    assert [name.partition(":")[0] for name in names] == [
        f"<IndexFolder {len(work.index):,} captions, embedded, threshold {work.index.threshold:g}",
        "<SetFolder 6 images, threshold 0.6",
        "<DeltaFolder <new1> on embedded, 822.5 kB",
        "<DeltaFolder <new1>, <new2> on embedded, 548.7 kB",
        "<SampleFolder 4 images of 2 prompts",
        f"<ScoreFolder {len(work.scores.metrics)} scores",
    ]
    for name, result in zip(names, vars(work).values(), strict=True):
        assert name.endswith(f": {result.folder}>")
        assert os.fspath(result) == str(result.folder)


def test_a_search_gives_captions_above_the_threshold(work: Work) -> None:
    found = cdkit.search(work.index, "a photo of a star", threshold=0.6, limit=5)
    assert len(found) == 5
    table = found.table.to_arrow()
    assert table.column_names == ["caption_id", "caption", "similarity", "images", "url"]
    assert list(found) == list(zip(table["caption"].to_pylist(), table["similarity"].to_pylist(), strict=True))
    assert min(table["similarity"].to_pylist()) >= 0.6
    assert repr(found).startswith("<5 or more captions like 'a photo of a star', threshold 0.6, first ")
    assert "<th>similarity</th>" in found._repr_html_()


def test_a_sets_pictures_and_rows_belong_together(work: Work) -> None:
    assert len(work.set) == 6
    pictures = list(work.set)
    rows = work.set.table.to_arrow().to_pylist()
    assert [picture.size for picture in pictures] == [(row["width"], row["height"]) for row in rows]
    assert "image" not in rows[0]
    assert work.set.funnel[-1][1] == 6


def test_samples_are_pictures_with_their_prompts(work: Work) -> None:
    assert [isinstance(picture, Image.Image) for picture in work.samples] == [True] * 4
    assert work.samples[-1].size == (32, 32)
    assert len(work.samples[1:3]) == 2
    assert work.samples.prompts == ["a <new1> star"] * 2 + ["a <b>bold</b> heart"] * 2
    assert work.samples.table.to_arrow()["seed"].to_pylist() == [0, 1, 0, 1]


def test_a_notebook_shows_pictures_and_no_markup_of_prompts(work: Work) -> None:
    shown = work.samples._repr_html_()
    assert shown.count("<img ") == 4
    assert "data:image/png;base64," in shown
    assert "a &lt;b&gt;bold&lt;/b&gt; heart" in shown
    assert "<b>" not in shown
    assert "<td>text_alignment</td>" in work.scores._repr_html_()


def test_tables_are_data_frames_where_pandas_is_there(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = work.scores.table.to_pandas()
    assert list(frame.columns) == work.scores.table.to_arrow().column_names
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingLibraryError, match="needs pandas") as caught:
        work.scores.table.to_pandas()
    assert caught.value.hint == "pip install pandas"


def test_a_delta_brings_its_own_base_and_words(work: Work) -> None:
    assert work.merged.tokens == ["<new1>", "<new2>"]
    assert work.merged.base == "embedded"
    assert work.merged.file.stat().st_size == work.merged.bytes


def test_the_same_call_is_found_done_in_the_cache_and_says_so(work: Work) -> None:
    again = cdkit.sample(work.merged, prompts=["a <new1> star", "a <b>bold</b> heart"], seeds=2, steps=1)
    assert work.samples.folder.parent == cache_folder() / "results"
    assert (work.samples.state, again.state) == ("done", "cached")
    assert again.folder == work.samples.folder
    assert ", found done: " in repr(again)
    other = cdkit.sample(None, prompts="a star", seeds=1, steps=1)
    assert other.folder != again.folder


def test_a_folder_is_opened_as_what_it_is(work: Work) -> None:
    opened = cdkit.load(work.set.folder)
    assert isinstance(opened, SetFolder)
    assert opened.state == "cached"
    with pytest.raises(InputError, match="holds no finished result"):
        cdkit.load(work.set.folder / "images")


def test_a_report_is_made_of_a_runs_folder(work: Work, tmp_path: Path) -> None:
    made = cdkit.make_report(work.index.folder.parent, out=tmp_path / "report", title="Stars")
    assert "<title>Stars" in made.page.read_text(encoding="utf-8")
    assert repr(made) == f"<ReportFolder page of a run: {tmp_path / 'report'}>"


def test_less_than_asked_for_is_no_error(work: Work, tmp_path: Path) -> None:
    few = cdkit.retrieve(
        work.index,
        "a photo of a star",
        images="embedded",
        min_similarity=0.6,
        count=5000,
        max_captions=3,
        out=tmp_path / "few",
    )
    assert few.state == "partial"
    assert few.short
    assert f", short: {few.short}: " in repr(few)


def test_progress_is_told_to_a_function(tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    made = cdkit.train(
        {"star": "embedded:striped-star"}, steps=2, checkpoint_every=0, out=tmp_path / "star", progress=events.append
    )
    assert [event.note for event in events if event.note] == list(made.notes)
    assert made.notes, "that nothing keeps the class word"
    steps = [event for event in events if event.total == 2]
    assert steps[-1].done == 2


def test_a_bar_is_drawn_only_where_somebody_looks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdkit.api.progress.QUIET_SECONDS", -1)
    cdkit.sample(prompts="a star", seeds=1, steps=2, out=tmp_path / "quiet")
    assert capsys.readouterr() == ("", "")
    cdkit.sample(prompts="a star", seeds=1, steps=2, out=tmp_path / "shown", progress=True)
    assert capsys.readouterr().out == ""


def test_mistakes_are_typed_and_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        cdkit.sample(prompts="a star", steps=0, seeds=0)
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="progress"):
        cdkit.sample(prompts="a star", progress="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="int is no path"):
        cdkit.merge([1, 2], captions="embedded")  # type: ignore[list-item]
    with pytest.raises(InputError):
        cdkit.search("nowhere", "a star")
    assert capsys.readouterr() == ("", "")
