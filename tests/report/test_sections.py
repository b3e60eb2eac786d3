from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cdkit.core.manifest import Manifest
from cdkit.core.storage import Folder
from cdkit.pictures.regularization_set import SetRow, write_images
from cdkit.report.picture_box import PictureBox
from cdkit.report.run_folder import StepFolder, read_run
from cdkit.report.sections.images import ROWS_SHOWN, ImagesSection, images_section
from cdkit.report.sections.regularization import Source, regularization_section
from cdkit.report.sections.scores import ScoredSet, ScoreTable
from cdkit.report.sections.training import token_spellings, token_texts, training_section
from cdkit.report.subjects import Subject, run_subjects
from tests.support.pretend_run import write_manifest, write_retrieved, write_trained


def _step(run: Path, name: str) -> StepFolder:
    return next(step for step in read_run(run).steps if step.name == name)


def test_where_images_came_from(tmp_path: Path) -> None:
    write_retrieved(tmp_path / "set", images=6)
    section = regularization_section(_step(tmp_path, "set"), PictureBox(1_000_000))
    assert section.from_elsewhere == 6
    assert section.hosts == [(f"pictures-{n}.example", 2) for n in range(3)]
    first, second = section.sources[:2]
    section.sources[0] = Source(first.step, first.key, "", "generated", "a star", "")
    section.sources[1] = Source(second.step, second.key, "http://127.0.0.1:1/x.png", "pool", "a star", "")
    assert (section.generated, section.from_elsewhere) == (1, 4)
    assert ("drawn by the base model", 1) in section.hosts
    assert ("rendered by cdkit (the embedded pool)", 1) in section.hosts
    assert section.images[0].similarity == pytest.approx(0.99)


def test_a_drawn_image_shows_no_similarity(tmp_path: Path) -> None:
    picture = tmp_path / "drawn.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    rows = [
        SetRow(f"00000{number}", picture, "a star", 1.0, None, 8, 8, "s", "0", source, "a star")
        for number, source in enumerate(["generated", "pool.parquet"])
    ]
    write_images(Folder(tmp_path / "set"), rows, "f" * 64)
    write_manifest(tmp_path / "set", "class-images")
    section = regularization_section(_step(tmp_path, "set"), PictureBox(1_000_000))
    assert [image.similarity for image in section.images] == [None, 1.0]


def test_a_training_log_may_have_gaps(tmp_path: Path) -> None:
    write_trained(tmp_path / "tuned", finished=False, steps=5)
    (tmp_path / "tuned" / "metrics.csv").write_text(
        "step,loss,target_loss,regularization_loss,seconds\n1,0.5,0.5,,1\n2,0.4,,0.4,2\n3,0.3,0.3,,3\n"
    )
    section = training_section(_step(tmp_path, "tuned"), PictureBox(1_000_000))
    assert section.chart is not None
    assert "regularization" in section.chart.svg
    assert "nan" not in section.chart.svg
    (tmp_path / "tuned" / "metrics.csv").write_text("step,loss\n")
    assert training_section(_step(tmp_path, "tuned"), PictureBox(1_000_000)).chart is None


def _write_samples(folder: Path, prompts: Sequence[str], seed: int = 0) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "images").mkdir(parents=True)
    rows = [
        {"prompt": prompt, "seed": seed, "path": f"images/{number}.png", "delta": None}
        for number, prompt in enumerate(prompts)
    ]
    for row in rows:
        Image.new("RGB", (8, 8)).save(folder / str(row["path"]))
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    write_manifest(folder, "sample", tokens=[])


def _images(folder: Path) -> ImagesSection:
    run = read_run(folder)
    section = images_section(run, run_subjects(run), PictureBox(1_000_000))
    assert section is not None
    return section


def test_many_sets_show_fewer_prompts(tmp_path: Path) -> None:
    for place in range(15):
        _write_samples(tmp_path / f"set{place:02d}", [f"prompt {number}" for number in range(6)])
    section = _images(tmp_path)
    assert [len(grid.rows) for grid in section.grids] == [15, 15]
    assert ROWS_SHOWN == 40
    assert section.prompts == 6


def test_the_head_shows_the_prompt_with_most_concepts(tmp_path: Path) -> None:
    _write_samples(tmp_path / "before", ["a cat"])
    _write_samples(tmp_path / "tuned", ["a <new1> cat", "a cat"])
    section = _images(tmp_path)
    assert section.hero is not None
    row, seeds = section.hero
    assert (row.detail, row.prompt, seeds) == ("tuned", "a <new1> cat", [0])
    _write_samples(tmp_path / "two", ["a <new2> dog", "a <new2> dog and a <new1> cat", "a <new1> and <new1>"], seed=7)
    section = _images(tmp_path)
    assert section.hero is not None
    row, seeds = section.hero
    assert (row.detail, row.prompt, seeds) == ("two", "a <new2> dog and a <new1> cat", [7])


def test_concepts_of_one_word_have_their_own_pictures(tmp_path: Path) -> None:
    _write_samples(tmp_path / "base", ["a dog at night"])
    _write_samples(tmp_path / "one", ["a <new1> dog at night", "a dog at night"])
    _write_samples(tmp_path / "two", ["a <new2> dog at night", "a dog at night"])
    _write_samples(tmp_path / "both", ["a <new1> dog and a <new2> dog"])
    subjects = [Subject("dog", ("<new1>",), "photos/one"), Subject("dog", ("<new2>",), "photos/two")]
    section = images_section(read_run(tmp_path), subjects, PictureBox(1_000_000))
    assert section is not None
    shown = [
        (group.title, sorted(row.prompt for grid in group.grids for row in grid.rows)) for group in section.groups
    ]
    # The base's, and what one's own set drew with and without the token.
    assert shown == [
        ("<new1> dog", ["a <new1> dog at night", "a dog at night", "a dog at night"]),
        ("<new2> dog", ["a <new2> dog at night", "a dog at night", "a dog at night"]),
        ("<new1> dog and <new2> dog in one picture", ["a <new1> dog and a <new2> dog"]),
    ]
    assert len({group.anchor for group in section.groups}) == 3


def test_tokens_of_every_kind_of_manifest() -> None:
    assert token_texts(["<new1>", "<new2>"]) == ["<new1>", "<new2>"]
    assert token_texts([{"text": "<new1>", "initializer": "ktn"}]) == ["<new1>"]
    assert token_texts([{"token": "<new2>", "was": "<new1>", "delta": "x"}]) == ["<new2>"]
    assert token_texts({"dog": "<new1>"}) == ["<new1>"]
    assert token_texts(None) == []


@pytest.mark.parametrize(
    ("stage", "values", "details", "typed"),
    [
        ("train", {"method": "custom-diffusion"}, {"tokens": [{"text": "<a>"}, {"text": "<b>"}]}, ["a", "b"]),
        ("train", {}, {"method": "textual-inversion", "tokens": [{"text": "<new1>"}]}, ["new1"]),
        ("merge", {}, {"tokens": [{"token": "<new2>", "was": "<new1>", "delta": "x"}]}, ["new2"]),
        # DreamBooth's rare word is one of the vocabulary: it is typed as it is everywhere.
        ("train", {"method": "dreambooth"}, {"tokens": [{"text": "sks"}]}, []),
        ("train", {"method": "custom-diffusion"}, {"tokens": []}, []),
        ("delta-compress", {}, {}, []),
    ],
)
def test_words_to_type_in_web_uis(
    tmp_path: Path, stage: str, values: dict[str, Any], details: dict[str, Any], typed: list[str]
) -> None:
    manifest = Manifest(stage, 1, "x", {}, {}, details=details)
    step = StepFolder("step", stage, values, tmp_path, "done", manifest)
    assert [word.webui for word in token_spellings(step)] == typed


def test_the_funnel_counts_pictures_alone(tmp_path: Path) -> None:
    write_retrieved(tmp_path / "set", images=6)
    counts = {"captions above the threshold": 5, "candidates": 20, "tried": 9, "fetched": 7, "decoded": 6}
    funnel = [{"step": step, "count": count} for step, count in {**counts, "generated": 4, "accepted": 10}.items()]
    write_manifest(tmp_path / "set", "retrieve", funnel=funnel)
    chart = regularization_section(_step(tmp_path, "set"), PictureBox(1_000_000)).funnel_chart
    assert chart is not None
    assert "captions above" not in chart.svg
    assert "generated" not in chart.svg
    assert ">6<" in chart.svg


def test_better_and_worse_are_said_where_intervals_part() -> None:
    def scored(label: str, **values: tuple[float, float, float]) -> ScoredSet:
        keys = ("value", "low", "high")
        return ScoredSet(label, {name: dict(zip(keys, triple, strict=True)) for name, triple in values.items()})

    before = scored("before", text_alignment=(0.5, 0.4, 0.6), drift=(0.2, 0.1, 0.3), kid=(1.0, 0.0, 2.0))
    after = scored("after", text_alignment=(0.8, 0.7, 0.9), drift=(0.6, 0.5, 0.7), kid=(1.5, 0.5, 2.5))
    table = ScoreTable("scores", "Star", [before, after], before, after, [])
    assert table.mark(after, "text_alignment") == "better"
    assert table.mark(after, "drift") == "worse"
    assert table.mark(after, "kid") == "", "the intervals overlap"
    assert table.mark(before, "drift") == ""
    assert (table.label(before), table.label(after)) == ("Star: before", "Star: after")
