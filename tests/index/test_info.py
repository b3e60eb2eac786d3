"""`cdkit index info` after the index changed, and what it says of a recall target that was missed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cdkit.cli.app import execute_command
from cdkit.core.protocols import Context
from cdkit.core.storage import Folder
from cdkit.engines.local import LocalEngine
from cdkit.index.caption_index import open_index
from cdkit.index.layout import IndexSettings
from cdkit.index.recall import Recall, recall_warnings
from cdkit.index.records import iterate_captions, iterate_image_rows
from cdkit.index.stage import index_embeddings
from tests.support.hashing_encoder import HashingEncoder
from tests.support.progress import Notes
from tests.support.small_index import grammar_captions, make_index


def _pool(path: Path, captions: list[str], first: int = 0) -> str:
    rows = [f"http://host/{first + number}.jpg,{caption}\n" for number, caption in enumerate(captions)]
    path.write_text("url,caption\n" + "".join(rows) + f"http://host/x{first}.jpg,\n")
    return str(path)


def _cdkit(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[dict[str, Any], str]:
    assert execute_command([*map(str, words), "--format", "json"]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def _consistent(manifest: dict[str, Any], folder: Path) -> None:
    """Whatever was done, what info says is what the files hold."""
    counts, details = manifest["counts"], manifest["details"]
    assert counts["in"] == counts["kept"] + sum(counts["rejected"].values())
    assert counts["kept"] == details["rows"] == sum(len(table) for table in iterate_image_rows(folder))
    assert details["captions"] == sum(len(table) for table in iterate_captions(folder))
    assert details["index"]["vectors"] == open_index(folder).faiss.count
    assert details["index"]["bytes"] == (folder / "caption.index").stat().st_size
    assert sum(file["in"] for file in details["files"]) == counts["in"]


def test_info_follows_every_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = grammar_captions(120)
    folder = tmp_path / "index"
    _cdkit(capsys, "index", "build", "--captions", _pool(tmp_path / "a.csv", captions[:100]), "--out", folder)
    built, words = _cdkit(capsys, "index", "info", folder)
    _consistent(built, folder)
    assert built["counts"] == {"in": 101, "kept": 100, "rejected": {"empty": 1}}
    assert "measured" not in words
    (tmp_path / "gone.txt").write_text("\n".join(captions[:10]))
    _cdkit(capsys, "index", "remove", folder, "--captions-file", tmp_path / "gone.txt")
    removed, words = _cdkit(capsys, "index", "info", folder)
    _consistent(removed, folder)
    assert removed["counts"]["rejected"] == {"empty": 1, "removed": 10}
    assert (removed["details"]["captions"], removed["details"]["removed"]) == (90, {"captions": 10, "rows": 10})
    more = _pool(tmp_path / "b.csv", [*captions[90:], captions[0]], first=90)
    _cdkit(capsys, "index", "add", folder, "--captions", more)
    added, words = _cdkit(capsys, "index", "info", folder)
    _consistent(added, folder)
    assert added["counts"]["in"] == 101 + 32
    assert added["counts"]["rejected"] == {"empty": 2, "removed": 11, "in_index": 10}
    assert added["details"]["recall"]["changed_since"] == ["add"]
    assert "The recall was measured on 100 vectors, before the index changed (1 × add)." in words
    _cdkit(capsys, "index", "remove", folder, "--captions-file", _lines(tmp_path, captions[20:25]))
    _cdkit(capsys, "index", "compact", folder)
    compacted, words = _cdkit(capsys, "index", "info", folder)
    _consistent(compacted, folder)
    assert compacted["details"]["captions"] == 90 + 20 - 5
    assert compacted["details"]["index"]["bytes"] < added["details"]["index"]["bytes"]
    assert compacted["details"]["recall"]["changed_since"] == ["add", "compact"]
    assert "(1 × add, 1 × compact)" in words
    _cdkit(capsys, "index", "compact", folder)
    assert _cdkit(capsys, "index", "info", folder)[0]["details"] == compacted["details"], "nothing was left to drop"


def _lines(folder: Path, lines: list[str]) -> Path:
    (folder / "more.txt").write_text("\n".join(lines))
    return folder / "more.txt"


def test_an_index_built_before_says_that_it_changed(exact_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    shutil.copytree(exact_folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("measured_vectors", "target", "target_reached"):
        del manifest["details"]["recall"][key]
    assert recall_warnings(manifest["details"]["recall"]) == []
    assert recall_warnings({**manifest["details"]["recall"], "changed_since": ["add", "add"]}) == [
        "The recall was measured, before the index changed (2 × add)."
    ]


def test_a_missed_recall_target_is_said_everywhere(
    tmp_path: Path,
    encoder: HashingEncoder,
    captions: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = IndexSettings(bytes_per_caption=4, exact_below=0, keep_embeddings=True, recall_target=1.0)
    folder = make_index(tmp_path / "index", captions, encoder, settings)
    notes = Notes()
    details = index_embeddings(Folder(folder), encoder, settings, Context(LocalEngine(1), notes))
    recall = details["recall"]
    assert recall["target"] == 1.0
    assert recall["target_reached"] is False
    assert any("below the target of 1: similar captions will be missed" in line for line in notes.notes)
    manifest, words = _cdkit(capsys, "index", "info", folder)
    assert manifest["details"]["recall"]["target_reached"] is False
    assert "below the target of 1" in words
    assert execute_command(["index", "info", str(folder)]) == 0
    table = capsys.readouterr().out
    assert [line.split()[-1] for line in table.splitlines() if "target reached" in line] == ["no"]


@pytest.mark.parametrize(
    ("threshold_recall", "top_200_recall", "reached"),
    [(0.95, 1.0, False), (0.99, 0.5, True), (None, 0.98, False), (None, 0.995, True), (None, None, None)],
)
def test_what_the_target_is_compared_with(
    threshold_recall: float | None, top_200_recall: float | None, reached: bool | None
) -> None:
    recall = Recall(9, 5, 0, 90, 0.8, 7, threshold_recall, None, top_200_recall, 4, 0.1, 100, 0.99).as_json()
    assert recall["target_reached"] is reached
    assert len(recall_warnings(recall)) == (reached is False)
