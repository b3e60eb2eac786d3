"""Column names: one rule for every table, no column read by chance, and no rating overlooked."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdkit.core.errors import ConfigError, InputError
from cdkit.pictures.captions import metadata_captions
from cdkit.pictures.reading import read_img2dataset
from tests.captions.running import run_import, write_jsonl, write_parquet

CASES = Path(__file__).parent
DUPLICATES = CASES / "01-case-duplicate-columns"
LATE = CASES / "02-late-rating-upper-case" / "late_rating_upper.jsonl"


def test_the_column_that_was_named_is_the_one_that_is_read(out: Path) -> None:
    found = run_import(out, DUPLICATES / "case_dup2.parquet", caption_column="TEXT", url_column="URL")
    assert sorted(row["url"] for row in found.image_rows) == ["http://right/1.jpg", "http://right/2.jpg"]
    other = run_import(out.parent / "other", DUPLICATES / "case_dup2.parquet", caption_column="TEXT", url_column="url")
    assert sorted(row["url"] for row in other.image_rows) == ["http://wrong/1.jpg", "http://wrong/2.jpg"]
    captions = run_import(out.parent / "third", DUPLICATES / "case_dup.parquet", caption_column="caption").captions
    assert captions == {"right a": 1, "right b": 1}


@pytest.mark.parametrize(
    ("name", "columns"), [("case_dup.parquet", "'CAPTION' and 'caption'"), ("case_dup2.parquet", "'url' and 'URL'")]
)
def test_two_columns_of_one_name_are_refused_by_name(out: Path, name: str, columns: str) -> None:
    with pytest.raises(InputError, match=f"{name}: the columns {columns} have the same name") as error:
        run_import(out, DUPLICATES / name)
    assert "--" in error.value.hint


def _table(path: Path, names: list[str], rows: list[list[str]]) -> Path:
    """The same table as parquet, csv, tsv or jsonl; a JSON object may hold a key twice."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_arrays([pa.array(column) for column in zip(*rows, strict=True)], names), path)
    elif path.suffix == ".jsonl":
        objects = [
            ", ".join(f"{json.dumps(n)}: {json.dumps(v)}" for n, v in zip(names, row, strict=True)) for row in rows
        ]
        path.write_text("".join(f"{{{line}}}\n" for line in objects))
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        path.write_text("".join(f"{separator.join(row)}\n" for row in [names, *rows]))
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl"])
@pytest.mark.parametrize(
    ("names", "same"),
    [
        (["caption", "url", "URL"], "'url' and 'URL'"),
        (["caption", "Image URL", "image_url"], "'Image URL' and 'image_url'"),
        (["caption", "Caption ", "url"], "'caption' and 'Caption '"),
        (["caption", "width", "WIDTH"], "'width' and 'WIDTH'"),
    ],
)
def test_no_format_reads_one_of_two_by_chance(
    tmp_path: Path, out: Path, names: list[str], same: str, kind: str
) -> None:
    pool = _table(tmp_path / f"p.{kind}", names, [["a dog", "https://x/1", "https://x/2"]] * 2)
    with pytest.raises(InputError, match=f"the columns {same} have the same name, and only one can be meant") as error:
        run_import(out, pool)
    assert error.value.hint


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_name_that_stands_there_twice_is_refused(tmp_path: Path, out: Path, kind: str) -> None:
    pool = _table(tmp_path / f"p.{kind}", ["caption", "url", "url"], [["a dog", "https://x/1", "https://x/2"]])
    with pytest.raises(InputError, match="the columns 'url' and 'url' have the same name"):
        run_import(out, pool)
    with pytest.raises(InputError, match="could both be 'url'"):
        run_import(out, pool, url_column="url")


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl"])
def test_columns_that_mean_nothing_may_be_called_as_they_like(tmp_path: Path, out: Path, kind: str) -> None:
    names = ["note", "NOTE", "Caption", "note ", "URL", "file_row_number", "row", "fault", "c0", ""]
    rows = [["1", "2", f"dog {n}", "3", f"https://x/{n}", "4", "5", "6", "7", "8"] for n in range(3)]
    found = run_import(out, _table(tmp_path / f"p.{kind}", names, rows))
    assert found.captions == {f"dog {n}": 1 for n in range(3)}
    assert sorted(row["url"] for row in found.image_rows) == [f"https://x/{n}" for n in range(3)]


def test_what_the_user_names_is_found_in_any_case_unless_that_is_several(tmp_path: Path, out: Path) -> None:
    pool = _table(tmp_path / "p.csv", ["Words", "WORDS", "Where To"], [["a dog", "a cat", "https://x/1"]])
    found = run_import(out, pool, caption_column="WORDS", url_column="where_to")
    assert found.captions == {"a cat": 1}
    assert found.image_rows[0]["url"] == "https://x/1"
    with pytest.raises(InputError, match="'Words' and 'WORDS' could both be 'words'"):
        run_import(out.parent / "2", pool, caption_column="words")
    with pytest.raises(ConfigError, match="no column 'wrods'; did you mean 'W"):
        run_import(out.parent / "3", pool, caption_column="wrods")


def test_lines_may_spell_a_key_differently_but_not_twice(tmp_path: Path, out: Path) -> None:
    lines = [
        {"caption": "a dog", "url": "https://x/1", "width": 640},
        {"Caption": "a cat", "URL": "https://x/2", "WIDTH": 320},
        {"CAPTION": "a bird", "Url": "https://x/3"},
        {"caption": "which", "Caption": "one", "url": "https://x/4"},
        {"caption": "two urls", "url": "https://x/5", "URL": "https://evil/5"},
        {"caption": "an empty other", "url": "https://x/6", "URL": None},
    ]
    found = run_import(out, write_jsonl(tmp_path / "p.jsonl", lines))
    urls = {row["url"] for row in found.image_rows}
    assert found.captions == {"a dog": 1, "a cat": 1, "a bird": 1, "an empty other": 1}
    assert urls == {f"https://x/{n}" for n in (1, 2, 3, 6)}
    assert sorted(row["width"] or 0 for row in found.image_rows) == [0, 0, 320, 640]
    assert found.rejects == [("p.jsonl", 3, "ambiguous"), ("p.jsonl", 4, "ambiguous")]
    # Named exactly, only that spelling counts.
    exact = run_import(out.parent / "exact", tmp_path / "p.jsonl", url_column="URL")
    assert {row["url"] for row in exact.image_rows if row["url"]} == {"https://x/2", "https://evil/5"}


def test_a_late_rating_in_upper_case_counts(out: Path) -> None:
    found = run_import(out, LATE, keep_unrated=True)
    assert found.manifest.counts == {"in": 1201, "kept": 1200, "rejected": {"nsfw": 1}}
    assert "late" not in found.captions
    with pytest.raises(InputError, match=r"No row of the pool was kept \(1 nsfw, 1200 unrated\)"):
        run_import(out.parent / "rated", LATE)


UNSAFE: list[tuple[str, Any]] = [
    ("nsfw", "NSFW"),
    ("NsFw", "nsfw "),
    (" NSFW ", "Unsure"),
    ("is-nsfw", True),
    ("nsfw", 1),
    ("NSFW", "0.97"),
    ("PUNSAFE", 0.9),
    ("punsafe", "0.9"),
    ("punsafe", True),
    ("nsfw_score_opennsfw2", 0.8),
    ("NSFW_Score_Gantman", "8e-1"),
    ("unsafe", "true"),
    ("image_nsfw", 0.99),
]


@pytest.mark.parametrize(("key", "value"), UNSAFE)
def test_a_rating_that_only_the_last_line_has_counts(tmp_path: Path, out: Path, key: str, value: Any) -> None:
    lines: list[dict[str, Any]] = [{"caption": f"c{n}", "url": f"https://x/{n}"} for n in range(1100)]
    pool = write_jsonl(tmp_path / "p.jsonl", [*lines, {"caption": "bad", "url": "https://x/bad", key: value}])
    found = run_import(out, pool, keep_unrated=True)
    assert [row for _, row, _ in found.rejects] == [1100]
    assert "bad" not in found.captions


def test_a_late_rating_is_found_compressed_escaped_and_beside_broken_lines(tmp_path: Path, out: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    lines = b"".join(b'{"caption": "c%d"}\n' % n for n in range(1100))
    late = b'{"caption": "bad", "\\u004eSFW": "NSFW"}\n'
    (pool / "a.jsonl.gz").write_bytes(gzip.compress(lines + late))
    (pool / "b.jsonl.zst").write_bytes(pa.compress(lines + late, codec="zstd", asbytes=True))
    (pool / "c.jsonl").write_bytes(b"{\n" + lines + b'{"caption": "bad", "nSFW": "NSFW", "x": "\\ud800"}\n')
    (pool / "d.jsonl").write_bytes((lines + late).decode().encode("utf-16"))
    (pool / "e.jsonl").write_bytes(lines + b'{"caption": "bad", "nsfw": "UNLIKELY", "nsfw": "NSFW"}\n')
    (pool / "f.jsonl").write_bytes(lines + b'{"caption": "bad", "nsfw": "UNLIKELY", "NSFW": "NSFW"}\n')
    found = run_import(out, pool, keep_unrated=True)
    assert "bad" not in found.captions
    assert found.reasons == {"nsfw": 5, "not_json": 1, "ambiguous": 1}


def test_a_caption_key_that_comes_late_is_found_too(tmp_path: Path, out: Path) -> None:
    lines: list[dict[str, Any]] = [{"id": n} for n in range(1500)]
    found = run_import(out, write_jsonl(tmp_path / "p.jsonl", [*lines, {"ID": 1, "Text": "a dog"}]))
    assert found.captions == {"a dog": 1}
    assert found.reasons == {"empty": 1500}


SAFE = ["UNLIKELY", "unlikely", " Unlikely", "sfw", "False", "0.01", "no"]
NEITHER = ["?", "", None, "nan", "maybe", "porn", "12", "-1", "[0.1]"]


def test_ratings_are_read_in_any_words(tmp_path: Path, out: Path) -> None:
    unsafe = ["NSFW", "nsfw", "UNSURE", "true", "Yes", "0.9", "1", "explicit", "LIKELY"]
    values = [*SAFE, *unsafe, *NEITHER]
    pool = write_parquet(
        tmp_path / "p.parquet", caption=[f"{value} {n}" for n, value in enumerate(values)], NSFW=values
    )
    found = run_import(out, pool)
    assert found.manifest.counts["kept"] == len(SAFE)
    assert found.reasons == {"nsfw": 7, "punsafe": 2, "unrated": len(NEITHER)}
    assert found.manifest.details["impossible"] == {"nsfw": 5}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([True, False, None]),
        pa.array([1, 0, None], pa.int8()),
        pa.array([1, 0, None], pa.uint64()),
        pa.array([0.9, 0.1, float("nan")], pa.float64()),
        pa.array([0.9, 0.1, float("inf")], pa.float32()),
        pa.array([0.9, 0.1, 7.0], pa.float64()),
        pa.array(["0.9", "0.1", "?"]),
        pa.array(["NSFW", "UNLIKELY", None]).dictionary_encode(),
        pa.array(["NSFW", "UNLIKELY", None], pa.large_string()),
        pa.array([b"NSFW", b"UNLIKELY", b""], pa.binary()),
        pa.array([["NSFW"], ["UNLIKELY"], None]),
        pa.array([{"x": 1}, {"x": 2}, None]),
    ],
    ids=lambda column: f"{column.type}-{column[2]}",
)
@pytest.mark.parametrize("name", ["NSFW", "Punsafe"])
def test_ratings_are_read_in_any_type_or_the_row_is_unrated(
    tmp_path: Path, out: Path, column: pa.Array, name: str
) -> None:
    pool = write_parquet(tmp_path / "p.parquet", caption=["bad", "good", "unknown"], **{name: column})
    if pa.types.is_nested(column.type):
        with pytest.raises(InputError, match=r"\(3 unrated\)"):
            run_import(out, pool)
    else:
        found = run_import(out, pool)
        assert found.captions == {"good": 1}
        assert found.reasons["unrated"] == 1


def test_of_several_ratings_the_worst_counts(tmp_path: Path, out: Path) -> None:
    pool = write_parquet(
        tmp_path / "p.parquet",
        caption=["good", "one says so", "another says so", "one is not understood", "one is unknown"],
        NSFW=["UNLIKELY", "UNLIKELY", "NSFW", "hm", None],
        nsfw=["UNLIKELY", "UNLIKELY", "UNLIKELY", "UNLIKELY", "UNLIKELY"],
        punsafe=[0.1, 0.1, 0.1, 0.1, None],
        nsfw_score_opennsfw2=[0.2, 0.9, 0.2, 0.2, 0.2],
        pwatermark=[0.1, 0.1, 0.1, 0.1, 0.1],
        watermark_score=[0.7, 0.1, 0.1, 0.1, None],
    )
    found = run_import(out, pool)
    assert found.captions == {"good": 1, "one is unknown": 1}
    assert found.reasons == {"punsafe": 1, "nsfw": 1, "unrated": 1}
    good = next(row for row in found.image_rows if row["punsafe"] is not None and row["pwatermark"] > 0.5)
    assert (good["nsfw"], round(good["punsafe"], 6), round(good["pwatermark"], 6)) == ("UNLIKELY", 0.2, 0.7)


def test_statistics_of_a_file_decide_nothing(tmp_path: Path, out: Path) -> None:
    """A Parquet file says of its columns what the greatest value is; NaN is left out of it, and DuckDB believes it."""
    pool = write_parquet(
        tmp_path / "p.parquet", caption=["a", "b"], punsafe=[float("nan"), 0.01], NSFW=["NSFW", "UNLIKELY"]
    )
    assert run_import(out, pool).captions == {"b": 1}


def test_tables_of_images_at_hand_go_by_the_same_rule(tmp_path: Path) -> None:
    table = {"KEY": ["0"], "Status": ["success"], "URL": ["https://x/1"], "Caption": ["a dog"], "jpg": [b"bytes"]}
    pq.write_table(pa.table(table), tmp_path / "00000.parquet")
    folder = read_img2dataset(tmp_path, "images")
    assert folder is not None
    (picture,) = folder.pictures
    assert (picture.key, picture.caption, picture.url, picture.content.read()) == (
        "0",
        "a dog",
        "https://x/1",
        b"bytes",
    )
    pq.write_table(pa.table(table | {"url": ["https://evil/1"]}), tmp_path / "00000.parquet")
    with pytest.raises(InputError, match=r"00000\.parquet: the columns 'URL' and 'url' have the same name"):
        read_img2dataset(tmp_path, "images")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_of_pictures_goes_by_the_same_rule(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("csv"):
        path.write_text("File Name,TEXT\na.jpg,a dog\n")
    else:
        path.write_text('{"File_Name": "a.jpg", "TEXT": "a dog"}\n')
    assert metadata_captions(path)[0] == [("a.jpg", "a dog", {})]
    if name.endswith("csv"):
        path.write_text("file_name,text,Text\na.jpg,a dog,a cat\n")
    else:
        path.write_text('{"file_name": "a.jpg", "text": "a dog", "Text": "a cat"}\n')
    with pytest.raises(InputError, match="have the same name"):
        metadata_captions(path)


def test_tokens_are_counted_over_the_same_rows(tmp_path: Path, out: Path) -> None:
    """Counting from pools reads them as an import does: a row that may not be searched is not counted either."""
    from cdkit.execute import execute
    from cdkit.tokens.config import TokenCountsConfig

    lines: list[dict[str, Any]] = [{"Caption": "dog", "NSFW": "UNLIKELY"}] * 1100
    write_jsonl(tmp_path / "p.jsonl", [*lines, {"CAPTION": "cat", "nsfw": "NSFW"}, {"CAPTION": "dog", "nsfw": "no"}])
    result = execute("token-counts", TokenCountsConfig(captions=[str(tmp_path / "p.jsonl")]), out)
    assert result.manifest.counts["in"] == 1101
    table = pq.read_table(next((out / "token_counts").glob("*.parquet"))).to_pylist()
    counts = {row["token"]: row["count"] for row in table}
    assert (counts["dog</w>"], counts["cat</w>"]) == (1101, 0)
