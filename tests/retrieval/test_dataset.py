"""`cdkit dataset` and --also-write of trainers: a set in the layouts of others, and what stands in the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cdkit.cli.app import execute_command
from cdkit.pictures.layouts import ALL_LAYOUTS
from cdkit.pictures.reading import read_pictures
from cdkit.pictures.trainers import TRAINERS
from tests.support.made_sets import made_set
from tests.support.photo_pool import picture

CAPTION = 'a "star",\nblue; and süß'


@pytest.fixture(scope="module")
def stars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_set(tmp_path_factory.mktemp("sets with spaces") / "stärs", 7, captions=[CAPTION])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(picture(number, "JPEG"))
    return folder


def dataset(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    code = execute_command(["dataset", *map(str, arguments), "--format", "json"])
    printed = capsys.readouterr()
    return code, json.loads(printed.out), printed.err


def test_a_finished_set_is_written_in_every_layout(
    stars: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [word for layout in ALL_LAYOUTS for word in ("--to", layout)]
    out = tmp_path / "läyouts"
    code, data, _ = dataset(capsys, stars, *wanted, "--photos", photos, "--out", out)
    assert (code, data["images"], set(data["written"])) == (0, 7, set(ALL_LAYOUTS))
    assert not (out / "building").exists()
    originals = read_pictures(stars).pictures
    for layout in ("diffusers", "imagefolder", "webdataset", "kohya/reg/1_star", "simpletuner/regularization"):
        pictures = read_pictures(out / layout).pictures
        assert [Path(entry.key).stem for entry in pictures] == [entry.key for entry in originals]
        assert [entry.sha256 for entry in pictures] == [entry.sha256 for entry in originals]
        assert (pictures[0].caption or "").split() == CAPTION.split()
    assert set(data["layouts"]) == set(TRAINERS)
    for facts in data["layouts"].values():
        assert Path(facts["config"]).is_file()
        assert facts["photos_shown"] >= facts["images_shown"] >= 7
    subject = next((out / "kohya" / "img").iterdir())
    assert subject.name == "3_ohwx star", "7 images are at most 3 × 3 photos; the prompt is a photo of a star"
    assert (subject / "000000.txt").read_text() == "photo of a ohwx star\n"


def test_words_are_as_given_and_few_images_are_told(
    stars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = tmp_path / "photos"
    many.mkdir()
    for number in range(9):
        (many / f"{number}.jpg").write_bytes(picture(number, "JPEG"))
    (many / "1.txt").write_text("a red <my-star> star, shining")
    words = ("--instance-word", "<new1>", "--class-word", "tin  star")
    arguments = (stars, "--to", "kohya", "--photos", many, *words, "--out", tmp_path / "out")
    code, _, said = dataset(capsys, *arguments)
    assert code == 0
    assert "7 regularization images beside 9 photos" in said
    (folder,) = (tmp_path / "out" / "kohya" / "img").iterdir()
    assert folder.name == "1_new1 tin star"
    assert (folder / "000000.txt").read_text() == "photo of a <new1> tin star\n"
    assert (folder / "000001.txt").read_text() == "a red <new1> star, shining\n", "trainers know one word for it"
    assert dataset(capsys, *arguments)[2].count("up to date") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--to", "kohya"], 2, "--photos FOLDER"),
        (["--to", "kohyaa"], 2, "did you mean 'kohya'?"),
        ([], 2, "to: missing"),
        (["--to", "kohya", "--photos", "{photos}", "--class-word", " "], 2, "class_word"),
        (["--to", "kohya", "--photos", "{nothing}"], 3, "is empty"),
        (["--to", "kohya", "--photos", "{missing}"], 3, "does not exist"),
    ],
)
def test_mistakes(
    arguments: list[str],
    code: int,
    said: str,
    stars: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "nothing").mkdir()
    places = {"photos": photos, "nothing": tmp_path / "nothing", "missing": tmp_path / "missing"}
    given = [word.format(**places) for word in arguments]
    ended, data, _ = dataset(capsys, stars, *given, "--out", tmp_path / "out")
    assert ended == code
    assert said in data["error"]["message"]


def test_a_set_that_does_not_say_what_it_shows(
    stars: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "passed-on"
    shutil.copytree(stars / "images", given / "images")
    arguments = (given, "--to", "onetrainer", "--photos", photos, "--out", tmp_path / "out")
    code, data, _ = dataset(capsys, *arguments)
    assert (code, "--class-word" in data["error"]["hint"]) == (2, True)
    assert dataset(capsys, *arguments, "--class-word", "star")[0] == 0


def test_a_broken_photo_is_told_before_anything_is_written(
    stars: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cut.jpg").write_bytes(picture(1, "JPEG")[:-200])
    arguments = (stars, "--to", "kohya", "--out", tmp_path / "out", "--photos")
    code, data, _ = dataset(capsys, *arguments, tmp_path / "photos")
    assert (code, "cut.jpg" in data["error"]["message"]) == (3, True)
    assert dataset(capsys, *arguments, photos)[0] == 0, "nothing stands in the way of the mended command"


def test_people_are_told_what_an_epoch_shows(
    stars: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--to", "onetrainer", "--photos", str(photos), "--out", str(tmp_path / "out")]
    assert execute_command(["dataset", str(stars), *arguments]) == 0
    said = capsys.readouterr().out
    assert "an epoch shows photos 7 times, the set's images 7" in said
    assert str(tmp_path / "out" / "onetrainer" / "concepts.json") in said
