"""Numbers that are none: NaN says that a value is not known, and no JSON of cdkit's holds one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdkit.cli.app import execute_command
from cdkit.retrieval.candidates import CandidateSettings, rejection
from tests.captions.running import Imported, run_import, write_parquet

CASES = Path(__file__).parent / "06-nan-in-parquet"
NAN, INFINITY = float("nan"), float("inf")


def test_an_unknown_width_costs_the_width_alone(out: Path) -> None:
    found = run_import(out, CASES / "nan_width.parquet")
    assert sorted((row["width"] or 0, row["height"]) for row in found.image_rows) == [(0, 480), (640, 480)]
    assert found.manifest.details["impossible"] == {}


def test_an_unknown_rating_is_no_unsafe_one(out: Path) -> None:
    found = run_import(out, CASES / "nan_scores.parquet", keep_unrated=True)
    assert found.reasons == {}
    assert {row["punsafe"] is None for row in found.image_rows} == {True, False}
    rated = run_import(out.parent / "rated", CASES / "nan_scores.parquet")
    assert rated.reasons == {"unrated": 1}


def _strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_no_command_prints_nan(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = str(CASES / "small.parquet")
    built = execute_command(["index", "build", "--captions", small, "--encoder", "embedded", "--out", str(out)])
    assert built == 0
    capsys.readouterr()
    search = ["index", "search", str(out), "a photo of a red star", "--min-similarity", "-1", "--format", "json"]
    assert execute_command(search) == 0
    results = _strict(capsys.readouterr().out)["results"]
    similarities = {row["url"]: row["pool_similarity"] for match in results for row in match["rows"]}
    assert similarities["http://127.0.0.1:9/0.jpg"] is None
    assert similarities["http://127.0.0.1:9/1.jpg"] == pytest.approx(0.3)
    assert execute_command(["index", "info", str(out), "--format", "json"]) == 0
    _strict(capsys.readouterr().out)
    for path in out.rglob("*.json"):
        _strict(path.read_text())


def _values(found: Imported) -> dict[str, dict[str, Any]]:
    captions = {row["caption_id"]: row["caption"] for row in pq.read_table(found.out / "captions").to_pylist()}
    return {captions[row["caption_id"]]: row for row in found.image_rows}


FIELDS = ("width", "height", "similarity", "punsafe", "pwatermark")
GOOD = {"width": 640, "height": 480, "similarity": 0.25, "punsafe": 0.125, "pwatermark": 0.5}


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.float16()], ids=str)
@pytest.mark.parametrize("field", FIELDS)
def test_parquet(tmp_path: Path, out: Path, field: str, kind: pa.DataType) -> None:
    columns: dict[str, Any] = {name: pa.array([value] * 4, pa.float64()) for name, value in GOOD.items()}
    columns[field.upper()] = pa.array([GOOD[field], NAN, INFINITY, -INFINITY], pa.float64()).cast(kind)
    del columns[field]
    names = ["good", "not known", "endless", "below"]
    found = run_import(out, write_parquet(tmp_path / "p.parquet", caption=names, **columns), keep_unrated=True)
    rows = _values(found)
    assert set(rows) == set(names)
    stored = "pool_similarity" if field == "similarity" else field
    assert rows["good"][stored] == GOOD[field]
    assert [rows[name][stored] for name in names[1:]] == [None, None, None]
    assert found.manifest.details["impossible"] == {field: 2}


WRITTEN = {
    **dict.fromkeys(["", "?", "NaN", "nan", " NAN ", "None", "null", "N/A", "<NA>"], False),
    **dict.fromkeys(["inf", "-Infinity", "1e999", "twelve", "0x10", "1;2", "-5"], True),
}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "broken csv", "broken jsonl"])
def test_text(tmp_path: Path, out: Path, kind: str) -> None:
    """What a text says of a number, in whatever way the file is read: known, not known, or impossible."""
    words = [*WRITTEN, "0.25"]
    rows = [(f"caption {n}", word, word, word) for n, word in enumerate(words)]
    path = tmp_path / f"p.{kind.rsplit(maxsplit=1)[-1]}"
    if "json" in kind:
        lines = [
            json.dumps(dict(zip(("caption", "width", "similarity", "punsafe"), row, strict=True))) for row in rows
        ]
        lines += ['{"caption": "a", "width": NaN}', '{"caption": "b", "width": Infinity, "similarity": 1e999}']
        lines += [
            '{"caption": "c", "width": null}',
            '{"caption": "d", "width": 640.0, "similarity": 0.5, "punsafe": 0}',
        ]
        lines += ['{"caption": "e", "width": ' + "9" * 5000 + "}", '{"caption": "f", "width": [], "similarity": {}}']
    else:
        separator = "\t" if kind == "tsv" else ","
        lines = [separator.join(row) for row in [("caption", "width", "similarity", "punsafe"), *rows]]
    if "broken" in kind:
        lines.append('"open')
    path.write_text("\n".join(lines) + "\n")
    found = run_import(out, path, keep_unrated=True)
    assert sum(found.reasons.values()) == ("broken" in kind)
    stored = _values(found)
    for n, word in enumerate(words):
        expected = 0.25 if word == "0.25" else None
        assert (stored[f"caption {n}"]["pool_similarity"], stored[f"caption {n}"]["punsafe"]) == (expected, expected)
    impossible = sum(WRITTEN.values())
    counted = found.manifest.details["impossible"]
    # A side of 0.25 pixels is none either.
    more = {"width": 1 + 3 * ("json" in kind), "similarity": 2 * ("json" in kind), "punsafe": 0}
    assert counted == {name: impossible + number for name, number in more.items()}
    if "json" in kind:
        assert (stored["d"]["width"], stored["d"]["punsafe"]) == (640, 0)
        assert {stored[name]["width"] for name in "abcef"} == {None}


def test_sides_that_are_not_known_are_no_small_ones(tmp_path: Path, out: Path) -> None:
    pool = write_parquet(
        tmp_path / "p.parquet", caption=["a", "b", "c"], width=[NAN, 10.0, 900.0], height=[500.0, NAN, NAN]
    )
    found = run_import(out, pool, min_side=64, max_aspect_ratio=2.0)
    assert found.captions == {"a": 1, "c": 1}
    # An index that an earlier cdkit made may still hold NaN.
    row = {"width": 640, "height": 480, "nsfw": None, "punsafe": NAN, "pwatermark": NAN, "pool_similarity": NAN}
    settings = CandidateSettings(max_punsafe=0.4, max_pwatermark=0.4, min_pool_similarity=0.3)
    assert rejection(row, settings) is None
