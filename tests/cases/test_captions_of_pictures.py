"""Case 09: a caption means the same wherever it stands, for photos, regularization images and images at hand."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdkit.core.manifest import Manifest
from cdkit.core.storage import Folder
from cdkit.pictures.layouts import LAYOUTS, write_layout
from cdkit.pictures.regularization_set import SetRow, write_images
from cdkit.retrieval.images import read_images
from cdkit.training.photos import concept_photos, regularization_pictures
from tests.support.photo_pool import picture
from tests.support.progress import Notes
from tests.training.conftest import make_material
from tests.training.running import Material, run

CASE = Path(__file__).parent / "09-captions-in-other-places"
CAPTIONS = [f"a cat with an é, “quotes” & number {number}" for number in range(4)]
ROWS = [{"file_name": f"{number}.jpg", "text": caption} for number, caption in enumerate(CAPTIONS)]


def images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(len(CAPTIONS)):
        (folder / f"{number}.jpg").write_bytes(picture(number))


def text_files(folder: Path, suffix: str = ".txt") -> None:
    images(folder)
    for number, caption in enumerate(CAPTIONS):
        (folder / f"{number}{suffix}").write_text(caption.replace(" ", "\n", 1) + "\n", encoding="utf-8")


def upper_case_text_files(folder: Path) -> None:
    text_files(folder, ".TXT")


def caption_files(folder: Path) -> None:
    text_files(folder, ".caption")


def metadata_jsonl(folder: Path) -> None:
    images(folder)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (folder / "metadata.jsonl").write_text(f"\ufeff{lines}\n", encoding="utf-8")


def metadata_jsonl_of_captions(folder: Path) -> None:
    images(folder)
    rows = [{"FILE_NAME": f"./{row['file_name']}", "label": 1, "caption": row["text"]} for row in ROWS]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def metadata_csv(folder: Path) -> None:
    images(folder)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, ["text", "file_name"])
        writer.writeheader()
        writer.writerows(reversed(ROWS))


def metadata_in_a_subfolder(folder: Path) -> None:
    metadata_jsonl(folder / "train")


def metadata_over_a_subfolder(folder: Path) -> None:
    images(folder / "train")
    rows = [row | {"file_name": f"train\\{row['file_name']}"} for row in ROWS]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def adobes_lists(folder: Path) -> None:
    images(folder / "images")
    names = [f"/home/somebody/class/images/{row['file_name']}" for row in reversed(ROWS)]
    (folder / "images.txt").write_text("\n".join(names) + "\n")
    (folder / "caption.txt").write_text("".join(f"{caption}\n" for caption in reversed(CAPTIONS)), encoding="utf-8")
    (folder / "urls.txt").write_text("".join(f"http://a.test/{number}\n" for number in reversed(range(4))))


def a_list_without_names(folder: Path) -> None:
    images(folder / "images")
    (folder / "caption.txt").write_text("\n".join(CAPTIONS), encoding="utf-8")


def set_rows(folder: Path) -> list[SetRow]:
    images(folder)
    return [
        SetRow(
            f"{n:06d}", folder / f"{n}.jpg", caption, 0.9, f"http://a.test/{n}", 200, 160, "s", "0", "pool", "a cat"
        )
        for n, caption in enumerate(CAPTIONS)
    ]


def a_set_of_ours(folder: Path) -> None:
    write_images(Folder(folder), set_rows(folder.parent / "stored"), "f" * 64)
    Manifest("retrieve", 1, "f" * 64, {}, {}).write(folder)


def layout(name: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        write_layout(name, Folder(folder.parent), set_rows(folder.parent / "stored"))
        (folder.parent / name).rename(folder)

    return write


def img2dataset(folder: Path) -> None:
    folder.mkdir()
    rows = [
        {"key": f"{n:09d}", "url": f"http://a.test/{n}", "caption": CAPTIONS[n], "status": "success"} for n in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for number, row in enumerate(rows):
            member = tarfile.TarInfo(f"{row['key']}.jpg")
            member.size = len(picture(number))
            archive.addfile(member, io.BytesIO(picture(number)))


CONVENTIONS: dict[str, Callable[[Path], None]] = {
    write.__name__: write
    for write in (
        *(text_files, upper_case_text_files, caption_files, metadata_jsonl, metadata_jsonl_of_captions, metadata_csv),
        *(metadata_in_a_subfolder, metadata_over_a_subfolder, adobes_lists, a_list_without_names, a_set_of_ours),
        img2dataset,
    )
} | {f"our {name}": layout(name) for name in LAYOUTS}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_convention_means_the_same_in_every_place(tmp_path: Path, convention: str) -> None:
    folder = tmp_path / "folder"
    CONVENTIONS[convention](folder)
    photos, regularization = concept_photos(str(folder)), regularization_pictures(str(folder))
    at_hand = read_images(folder)
    expected = {picture(number): caption for number, caption in enumerate(CAPTIONS)}
    for pictures in (photos.pictures, regularization.pictures, at_hand.pictures):
        assert {entry.content.read(): entry.caption for entry in pictures} == expected
    assert photos.all_notes() == regularization.all_notes() == at_hand.all_notes() == []
    urls = {entry.url for entry in at_hand.pictures} - {None}
    assert urls in (set(), {f"http://a.test/{number}" for number in range(4)})


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize("folder", ["caps_kohya", "caps_hf"])
def test_the_photos_of_case_09_are_trained_with_their_captions(
    material: Material,
    tmp_path: Path,
    folder: str,
) -> None:
    config = material.config(
        concepts={"star": str(CASE / folder)}, regularization={}, resolution=16, steps=1, batch_size=1
    )
    result = run(config, tmp_path / "out")
    assert result.manifest.details["prompts"] == ["a <new1> star on grass"]
    assert result.manifest.counts == {"in": 4, "kept": 4, "rejected": {}}


@pytest.mark.parametrize("folder", ["flat_reg", "adobe_reg"])
def test_the_regularization_images_of_case_09_keep_their_captions(
    material: Material,
    tmp_path: Path,
    folder: str,
) -> None:
    from cdkit.training.base_facts import read_base
    from cdkit.training.plan import make_plan

    config = material.config(regularization={"cat": str(CASE / folder)}, resolution=16)
    facts = read_base(config.base)
    assert facts is not None
    notes: list[str] = []
    (planned,) = make_plan(config, facts, notes.append).concepts
    assert planned.regularization_captions == [f"a special caption {number}" for number in range(5)]
    assert notes == []
    # One picture more, without a caption, is said to have none.
    shutil.copytree(CASE / folder, tmp_path / "more")
    shutil.copy(CASE / "flat_reg" / "0.png", tmp_path / "more" / "z.png")
    more = material.config(regularization={"cat": str(tmp_path / "more")}, resolution=16)
    (planned,) = make_plan(more, facts, notes.append).concepts
    assert "photo of a cat" in planned.regularization_captions
    assert "1 of the 6 images" in notes[-1]


def test_captions_that_contradict_each_other_are_named(
    material: Material,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(CASE / "caps_hf", folder)
    (folder / "1.txt").write_text("a <new1> star at night")
    notes = Notes()
    config = material.config(concepts={"star": str(folder)}, regularization={}, resolution=16, steps=1, batch_size=1)
    result = run(config, tmp_path / "out", progress=notes)
    assert result.manifest.details["prompts"] == ["a <new1> star on grass", "a <new1> star at night"]
    (said,) = [note for note in notes.notes if "contradict" in note]
    assert "1.png (1.txt, metadata.jsonl)" in said
