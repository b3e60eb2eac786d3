"""Class images: drawn by a base model, as a set of their own and in place of what a retrieval did not find."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdkit import encoders
from cdkit.cli.app import execute_command
from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError
from cdkit.core.protocols import SilentProgress
from cdkit.execute import execute
from cdkit.retrieval.config import ClassImagesConfig, RetrieveConfig
from tests.support.hashing_encoder import HashingEncoder
from tests.support.photo_pool import PoolPicture, index_of, picture
from tests.support.regularization_sets import read_regularization_set
from tests.support.tiny_pipeline import tiny_pipeline

ENCODER = HashingEncoder(threshold=0.6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny base")
    tiny_pipeline(folder)
    return str(folder)


def _config(base: str, **values: Any) -> ClassImagesConfig:
    given = {"prompts": ["photo of a Cat", "a cat"], "base": base, "count": 5, "steps": 2, "device": "cpu", **values}
    return parse_config(ClassImagesConfig, given)


def test_class_images_are_a_regularization_set(base: str, tmp_path: Path) -> None:
    from cdkit.training.photos import regularization_pictures

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.jpg").write_bytes(picture(0, "JPEG"))
    config = _config(base, also_write=["diffusers", "kohya"], photos=str(tmp_path / "photos"))
    result = execute("class-images", config, tmp_path / "set")
    assert {path.name for path in (tmp_path / "set" / "kohya").glob("*/*")} == {"5_ohwx Cat", "1_Cat"}
    assert result.manifest.details["layouts"]["kohya"]["images_shown"] == 5
    rows = read_regularization_set(tmp_path / "set")
    assert [row.caption for row in rows] == ["photo of a Cat", "a cat"] * 2 + ["photo of a Cat"]
    assert {(row.source, row.url, row.similarity) for row in rows} == {("generated", None, 1.0)}
    assert len({row.image for row in rows}) == 5, "every image has a seed of its own"
    assert result.manifest.details["generated"] == result.manifest.details["accepted"] == 5
    assert sorted(path.name for path in (tmp_path / "set").iterdir() if not path.name.startswith(".")) == [
        "README.md",
        "contact_sheet.png",
        "diffusers",
        "images",
        "kohya",
        "manifest.json",
    ]
    pictures = regularization_pictures(str(tmp_path / "set")).pictures
    assert [picture.caption for picture in pictures] == [row.caption for row in rows]
    assert pictures[0].open().size == (32, 32)


def test_an_interrupted_drawing_goes_on_and_ends_alike(base: str, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    class StopsAtSecondBatch(SilentProgress):
        def task(self, label: str, total: float | None, *, unit: str = "") -> Any:
            return _Task()

    class _Task:
        left = 3

        def __enter__(self) -> _Task:
            return self

        def __exit__(self, *reason: object) -> None:
            return None

        def advance(self, amount: float = 1) -> None:
            self.left -= 1
            if self.left == 0:
                raise Interrupted

    config = _config(base, batch_size=2)
    with pytest.raises(Interrupted):
        execute("class-images", config, tmp_path / "set", progress=StopsAtSecondBatch())
    drawn = tmp_path / "set" / "building" / "drawn"
    assert len(list(drawn.iterdir())) == 2
    execute("class-images", config, tmp_path / "set")
    execute("class-images", _config(base), tmp_path / "whole")
    for one, other in zip(*map(read_regularization_set, (tmp_path / "set", tmp_path / "whole")), strict=True):
        assert one.caption == other.caption
        left, right = (np.asarray(Image.open(_opened(row.image)), dtype=int) for row in (one, other))
        assert np.abs(left - right).max() <= 2


def _opened(content: bytes) -> io.BytesIO:
    return io.BytesIO(content)


def test_blank_images_are_replaced_and_many_of_them_are_an_error(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdkit.pictures import decoding

    is_blank = decoding.is_blank
    seen: list[int] = []

    def second_is_blank(image: Image.Image) -> bool:
        seen.append(1)
        return len(seen) == 2 or is_blank(image)

    monkeypatch.setattr(decoding, "is_blank", second_is_blank)
    result = execute("class-images", _config(base, count=3), tmp_path / "set")
    assert result.manifest.counts == {"in": 4, "kept": 3, "rejected": {"blank": 1}}
    assert [row.key for row in read_regularization_set(tmp_path / "set")] == ["000000", "000001", "000002"]
    monkeypatch.setattr(decoding, "is_blank", lambda image: True)
    with pytest.raises(ConfigError, match="blank"):
        execute("class-images", _config(base, count=3, seed=9), tmp_path / "other")


def test_the_command_and_yaml_make_the_same_set(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    words = ["class-images", "photo of a cat", "--base", base, "--count", "2", "--steps", "2", "--device", "cpu"]
    assert execute_command([*words, "--out", str(out), "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"asked": 2, "accepted": 2, "generated": 2, "rejected": {}, "out": str(out)}
    pipeline = tmp_path / "one.yaml"
    body = {"run": "class-images", "prompts": ["photo of a cat"], "base": base, "count": 2, "steps": 2}
    pipeline.write_text(json.dumps({"name": "one", "stages": {"set": {**body, "device": "cpu"}}}))
    assert execute_command(["run", str(pipeline), "--out", str(tmp_path / "run"), "--format", "quiet"]) == 0
    assert read_regularization_set(tmp_path / "run" / "set") == read_regularization_set(out)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(encoders, "load_text_encoder", lambda *_, **__: ENCODER)
    rows = [PoolPicture(f"photo of a cat {number}", f"http://example.org/{number}.jpg") for number in range(2)]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, row in enumerate(rows):
        (folder / f"{number}.jpg").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(row.caption)
    return index_of(tmp_path / "index", rows, ENCODER)


def test_what_is_not_found_is_drawn(
    base: str, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["retrieve", str(index), "Photo of a cat", "--images", str(tmp_path / "pictures"), "--count", "6"]
    words += ["--format", "json"]
    assert execute_command([*words, "--out", str(tmp_path / "found")]) == 5
    assert json.loads(capsys.readouterr().out)["accepted"] == 2
    filling = [*words, "--fill", "generated", "--base", base, "--device", "cpu", "--near-duplicate-bits", "0"]
    assert execute_command([*filling, "--out", str(tmp_path / "filled")]) == 0
    assert json.loads(capsys.readouterr().out)["accepted"] == 6
    rows = read_regularization_set(tmp_path / "filled")
    assert [row.source == "generated" for row in rows] == [False, False, True, True, True, True]
    assert rows[:2] == read_regularization_set(tmp_path / "found")
    assert {row.caption for row in rows[2:]} == {"Photo of a cat"}, "as written, like captions that were found"
    with Image.open(_opened(rows[2].image)) as drawn:
        assert drawn.size == (128, 128), "the model's 32 pixels, enlarged to the least side"
    manifest = json.loads((tmp_path / "filled" / "manifest.json").read_text())
    assert manifest["details"]["generated"] == 4
    assert sum(manifest["details"]["similarities"]["counts"]) == 2, "a drawn image has no similarity"
    steps = {entry["step"]: entry["count"] for entry in manifest["details"]["funnel"]}
    assert (steps["fetched"], steps["generated"], steps["accepted"]) == (2, 4, 6)
    counts = manifest["counts"]
    assert counts["in"] == counts["kept"] + sum(counts["rejected"].values())


def test_a_base_without_fill_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="--fill generated"):
        parse_config(RetrieveConfig, {"index": "i", "prompts": ["a"], "base": "embedded"})
    assert parse_config(RetrieveConfig, {"index": "i", "prompts": ["a"], "fill": "generated"}).base == "embedded"
    assert parse_config(RetrieveConfig, {"index": "i", "prompts": ["a"]}).base is None
