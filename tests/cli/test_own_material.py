"""A user's own things: a caption table with odd columns, class images without any index, a home that is read-only."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdkit.core.fingerprints import cache_folder
from cdkit.embedded.concepts import write_concept
from cdkit.embedded.grammar import describe
from cdkit.embedded.rendering import render
from cdkit.embedded.world import generator, scene_from_seed
from tests.cli.running import ran
from tests.support.file_systems import mounted

ODD = ("Bild-Unterschrift (de)", "wo es liegt", "Nr.")


def _table(path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, delimiter=";" if path.suffix == ".txt" else ",")
        writer.writerow(ODD)
        for number in range(60):
            caption = describe(scene_from_seed(number), generator(number)).text
            writer.writerow([f"{caption}, „Nr. {number}“", f"https://example.com/{number}.jpg", number])
    return path


def test_a_table_with_odd_columns_says_which_there_are_and_takes_them_by_name(tmp_path: Path) -> None:
    table = _table(tmp_path / "meine Tabelle.csv")
    out = tmp_path / "index"
    wrong = ran(["index", "build", "--captions", table, "--out", out])
    assert wrong.code in (2, 3)
    assert all(column in wrong.err for column in ODD)
    assert "--caption-column" in wrong.err
    named = ["--caption-column", ODD[0], "--url-column", ODD[1]]
    built = ran(["index", "build", "--captions", table, *named, "--out", out, "--format", "json"])
    assert built.code == 0, built.err
    found = ran(["index", "search", out, "a star", "--min-similarity", "-1", "--limit", 100, "--format", "json"]).data
    assert len(found["results"]) == 60
    first = found["results"][0]
    number = first["caption"].lower().partition("nr. ")[2].rstrip("“\"'")
    assert [row["url"] for row in first["rows"]] == [f"https://example.com/{number}.jpg"]


def test_training_needs_no_index_only_photos_and_class_images(tmp_path: Path) -> None:
    from PIL import Image

    photos, others = tmp_path / "my photos", tmp_path / "other stars"
    write_concept("striped-star", photos)
    others.mkdir()
    for number in range(6):
        Image.fromarray(render(scene_from_seed(number))).resize((96, 96)).save(others / f"{number}.png")
    (others / "readme.txt").write_text("not a picture")
    out = tmp_path / "tuned"
    words = ["train", "--concept", f"star={photos}", "--regularization", f"star={others}", "--steps", 2]
    trained = ran([*words, "--batch-size", 2, "--out", out, "--format", "json"])
    assert trained.code == 0, trained.err
    assert trained.data["steps"] == 2
    assert (out / "delta.safetensors").exists()
    drawn = ran(
        [
            "sample",
            "--delta",
            out,
            "--prompt",
            "a <new1> star",
            "--seeds",
            1,
            "--steps",
            2,
            "--out",
            tmp_path / "drawn",
        ]
    )
    assert drawn.code == 0, drawn.err


def test_a_home_that_cannot_be_written_to_is_no_obstacle(tmp_path: Path) -> None:
    """What would be kept there goes to the folder of temporary files."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    table = _table(tmp_path / "captions.csv")
    with mounted(tmp_path / "home", "ro") as home:
        kept = {name: value for name, value in os.environ.items() if name not in ("CDKIT_CACHE", "XDG_CACHE_HOME")}
        command = [sys.executable, "-m", "cdkit", "index", "build", "--captions", str(table)]
        command += ["--caption-column", ODD[0], "--out", str(tmp_path / "index"), "--format", "json"]
        done = subprocess.run(
            command,
            env={**kept, "HOME": str(home), "TMPDIR": str(scratch)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["state"] == "done"
        assert list(home.iterdir()) == []
    assert [path.name for path in scratch.iterdir()] == [f"cdkit-cache-{os.getuid()}"]


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDKIT_CACHE", "/somewhere/else")
    assert cache_folder() == Path("/somewhere/else")
    monkeypatch.delenv("CDKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not there yet"))
    assert cache_folder() == tmp_path / "not there yet" / "cdkit"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    assert cache_folder().name == f"cdkit-cache-{os.getuid()}"
