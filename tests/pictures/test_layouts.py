"""The set in other programs' layouts, read by their own rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import webdataset  # type: ignore[import-untyped]

from cdkit.core.storage import Folder
from cdkit.pictures.decoding import decode
from cdkit.pictures.folder import picture_format
from cdkit.pictures.layouts import LAYOUTS, one_line, write_layout
from cdkit.pictures.picture import open_file
from cdkit.pictures.reading import read_pictures
from cdkit.pictures.regularization_set import SetRow
from tests.support.photo_pool import picture

CAPTIONS = ["a dog", "two\nlines", "form\x0cfeed, next\x85line and para\u2029graph", "чёрный кот", "tab\tand  spaces"]


@pytest.fixture
def rows(tmp_path: Path) -> list[SetRow]:
    found = []
    for number, caption in enumerate(CAPTIONS):
        kind = "PNG" if number == 3 else "JPEG"
        path = tmp_path / f"stored-{number}.{'png' if kind == 'PNG' else 'jpg'}"
        path.write_bytes(picture(number, kind))
        url = None if number == 2 else f"http://a.test/{number}\n.jpg"
        found.append(
            SetRow(f"{number:06d}", path, caption, 0.9, url, 200, 160, f"sha-{number}", "0" * 16, "pool", "a dog")
        )
    return found


def diffusers_class_images(class_data_dir: Path, count: int) -> list[tuple[str, str]]:
    """What diffusers' train_custom_diffusion.py makes of a class_data_dir with --real_prior, by its own checks."""
    assert (class_data_dir / "images").exists()
    assert len(list((class_data_dir / "images").iterdir())) == count
    assert (class_data_dir / "caption.txt").exists()
    assert (class_data_dir / "images.txt").exists()
    with open(class_data_dir / "images.txt", encoding="utf-8") as listed:
        paths = listed.read().splitlines()
    with open(class_data_dir / "caption.txt", encoding="utf-8") as listed:
        prompts = listed.read().splitlines()
    return list(zip(paths, prompts, strict=True))[:count]


def test_diffusers_reads_every_image_with_its_caption(
    tmp_path: Path, rows: list[SetRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_layout("diffusers", Folder(tmp_path / "set"), rows)
    monkeypatch.chdir("/")
    pairs = diffusers_class_images(tmp_path / "set" / "diffusers", len(rows))
    for row, (path, caption) in zip(rows, pairs, strict=True):
        assert Path(path).read_bytes() == row.path.read_bytes()
        assert caption.split() == row.caption.split()
    urls = (tmp_path / "set" / "diffusers" / "urls.txt").read_text(encoding="utf-8").splitlines()
    assert len(urls) == len(rows)
    assert urls[2] == ""


def test_our_own_reader_reads_every_layout(tmp_path: Path, rows: list[SetRow]) -> None:
    for layout in LAYOUTS:
        write_layout(layout, Folder(tmp_path), rows)
        read = read_pictures(tmp_path / layout)
        assert read.layout == layout
        assert read.all_notes() == []
        by_key = {Path(image.key).stem: image for image in read.pictures}
        for row in rows:
            image = by_key[row.key]
            assert image.open().tobytes() == open_file(row.path).tobytes()
            assert image.caption is not None
            assert image.caption.split() == row.caption.split()


def test_imagefolder_names_every_file(tmp_path: Path, rows: list[SetRow]) -> None:
    write_layout("imagefolder", Folder(tmp_path), rows)
    lines = (tmp_path / "imagefolder" / "metadata.jsonl").read_text(encoding="utf-8").split("\n")
    entries = [json.loads(line) for line in lines if line]
    assert [entry["file_name"] for entry in entries] == [row.file_name for row in rows]
    assert [entry["text"] for entry in entries] == CAPTIONS
    assert all((tmp_path / "imagefolder" / entry["file_name"]).is_file() for entry in entries)


@pytest.mark.parametrize(("kept", "field"), [(".jpg", "jpg"), (".png", "png"), ("", "png")])
def test_webdataset_reads_its_tars(tmp_path: Path, rows: list[SetRow], kept: str, field: str) -> None:
    chosen = [row for row in rows if row.path.suffix in (kept or row.path.suffix)]
    write_layout("webdataset", Folder(tmp_path), chosen)
    samples = list(webdataset.WebDataset(str(tmp_path / "webdataset" / "00000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [row.key for row in chosen]
    fields = {frozenset(name for name in sample if not name.startswith("__")) for sample in samples}
    assert fields == {frozenset({field, "txt", "json"})}, "datasets takes the first sample's fields for those of all"
    for sample, row in zip(samples, chosen, strict=True):
        content = sample[field]
        assert picture_format(content) == {"jpg": "JPEG", "png": "PNG"}[field]
        if row.path.suffix == f".{field}":
            assert content == row.path.read_bytes()
        assert decode(content).picture.tobytes() == open_file(row.path).tobytes()
        assert sample["txt"].decode() == row.caption
        assert json.loads(sample["json"])["url"] == row.url


def test_the_same_rows_are_the_same_bytes(tmp_path: Path, rows: list[SetRow]) -> None:
    for layout in LAYOUTS:
        found = []
        for _ in range(2):
            write_layout(layout, Folder(tmp_path), rows)
            files = sorted(path for path in (tmp_path / layout).rglob("*") if path.is_file())
            found.append({path.relative_to(tmp_path): path.read_bytes() for path in files})
        assert found[0] == found[1]


def test_nothing_ends_a_line_but_its_end() -> None:
    every = "".join(map(chr, range(0x2100)))
    assert len(one_line(every).splitlines()) == 1
