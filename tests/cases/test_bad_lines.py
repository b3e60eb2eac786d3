"""One bad line is one rejected row with its reason; a pool is never refused for it, however it is compressed."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdkit.captions.lines import MAX_LINE, separated_rows
from cdkit.captions.pools import Layout
from cdkit.core.errors import InputError
from tests.captions.running import Imported, content, run_import, write_parquet

CASES = Path(__file__).parent / "11-one-bad-line"


def test_a_value_that_begins_with_a_quotation_mark(out: Path) -> None:
    found = run_import(out, CASES / "bare_quote.tsv")
    assert found.captions == {'b 6" x 7"': 1, "last": 1}
    assert found.rejects == [("bare_quote.tsv", 0, "broken_quotes"), ("bare_quote.tsv", 2, "broken_quotes")]
    assert _shown(found) == ['"best" dog ever\thttp://x.y/1.jpg', '"open\thttp://x.y/3.jpg']


def test_a_short_row(out: Path) -> None:
    found = run_import(out, CASES / "short_row.csv")
    assert found.captions == {"a dog": 1, "last": 1}
    assert found.rejects == [("short_row.csv", 1, "wrong_columns")]


def test_quotes_behind_backslashes(tmp_path: Path, out: Path) -> None:
    """The only row of its file: what is said is the reason, and nothing of a damaged file."""
    with pytest.raises(InputError, match=r"No row of the pool was kept \(1 broken_quotes\)"):
        run_import(out, CASES / "backslash.csv")
    pool = tmp_path / "p.csv"
    pool.write_bytes((CASES / "backslash.csv").read_bytes() + b"a cat,http://x.y/2.jpg\n")
    found = run_import(out.parent / "two", pool)
    assert found.captions == {"a cat": 1}
    assert found.reasons == {"broken_quotes": 1}


def _shown(found: Imported) -> list[str]:
    tables = [pq.read_table(path) for path in sorted((found.out / "rejects").glob("*.parquet"))]
    return [row["value"] for table in tables for row in table.to_pylist()]


PLAIN: Callable[[bytes], bytes] = bytes
PACKED = {"": PLAIN, ".gz": gzip.compress, ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True)}
GOOD = [b"a dog,https://x/1", b'"a ""small"", cat",https://x/2', b'"two\nlines",https://x/3', b'5" disk,https://x/4']
BAD_CSV = {
    b'"open,https://x/9': "broken_quotes",
    b'"closed" and more,https://x/9': "broken_quotes",
    b'"back \\" slash",https://x/9': "broken_quotes",
    b"short": "wrong_columns",
    b"a,b,https://x/9": "wrong_columns",
    b'"a",b,https://x/9': "wrong_columns",
    b"nul \0 byte,https://x/9": "undecodable",
    b'"nul\0",https://x/9': "undecodable",
    b"bad \xff byte,https://x/9": "undecodable",
    b"url,https://x/\xff": "undecodable",
    b"stray \r return,https://x/9": "broken_quotes",
}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".csv.zst", ".tsv.gz", ".tsv.zst"])
@pytest.mark.parametrize(("line", "reason"), BAD_CSV.items())
def test_csv_and_tsv(tmp_path: Path, out: Path, suffix: str, line: bytes, reason: str) -> None:
    lines = [b"caption,url", *GOOD[:2], line, *GOOD[2:]]
    if "tsv" in suffix:
        lines = [
            b'"a ""small"", cat"\thttps://x/2' if item is GOOD[1] else item.replace(b",", b"\t") for item in lines
        ]
    packed = PACKED[suffix[4:]]
    (tmp_path / f"p{suffix}").write_bytes(packed(b"".join(item + b"\n" for item in lines)))
    found = run_import(out, tmp_path / f"p{suffix}")
    assert found.captions == {"a dog": 1, 'a "small", cat': 1, "two\nlines": 1, '5" disk': 1}
    assert sorted(row["url"] for row in found.image_rows) == [f"https://x/{n}" for n in range(1, 5)]
    assert found.rejects == [(f"p{suffix}", 2, reason)]


BAD_JSON = {
    b"{": "not_json",
    b'{"caption": "half"': "not_json",
    b"{'caption': 'single'}": "not_json",
    b"a line of text": "not_json",
    b'{"caption": "two"} {"caption": "objects"}': "not_json",
    b'{"caption": "raw \0 nul"}': "not_json",
    b"[1, 2]": "not_object",
    b"null": "empty",
    b'"text"': "not_object",
    b'{"caption": ["a", "list"]}': "not_text",
    b'{"caption": {"an": "object"}}': "not_text",
    b'{"caption": "bad \xff byte"}': "undecodable",
    b'{"caption": "half \\ud83d"}': "undecodable",
    b'{"caption": "nul \\u0000"}': "undecodable",
    b'{"caption": "twice", "caption": "caption"}': "ambiguous",
    b'{"caption": "deep", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": "",
}


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize(("line", "reason"), BAD_JSON.items(), ids=lambda value: str(value)[:40])
def test_json_lines(tmp_path: Path, out: Path, suffix: str, line: bytes, reason: str) -> None:
    lines = [b'{"caption": "a dog"}', b'{"caption": "[photo] of a cat", "width": NaN}', line, b'{"caption": "[1]"}']
    packed = PACKED["".join(Path(f"p{suffix}").suffixes[1:])]
    (tmp_path / f"p{suffix}").write_bytes(packed(b"\n".join(lines)))
    found = run_import(out, tmp_path / f"p{suffix}")
    if not reason:
        # Too deep for Python, not for DuckDB; what nobody asks for may be as deep as it likes.
        assert found.manifest.counts["in"] == 4
        return
    assert found.captions == {"a dog": 1, "[photo] of a cat": 1, "[1]": 1}
    assert found.rejects == [(f"p{suffix}", 2, reason)]


def test_bad_lines_anywhere_also_first_and_last_and_many(tmp_path: Path, out: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "a.jsonl").write_bytes(b"[\n" * 1200 + b'{"caption": "a dog"}\n' + b"]")
    (pool / "b.csv").write_bytes(b'caption,url\n"first,x\na cat,https://x/1\n"last,x')
    (pool / "c.tsv").write_bytes(b"no url\na bird\thttps://x/2\n" + b"a fish\thttps://x/3\n" * 5 + b"\x80\n")
    found = run_import(out, pool)
    assert found.captions == {"a dog": 1, "a cat": 1, "a bird": 1, "a fish": 5}
    assert found.reasons == {"not_json": 1201, "broken_quotes": 2, "wrong_columns": 2}
    files = {entry["file"]: (entry["in"], entry["kept"]) for entry in found.manifest.details["files"]}
    assert files == {"a.jsonl": (1202, 1), "b.csv": (3, 1), "c.tsv": (8, 6)}


def test_fields_longer_than_the_csv_module_reads(tmp_path: Path, out: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    long, other = "x" * 200_000, "y" * 200_000
    assert csv.field_size_limit() != 0
    (pool / "a.csv").write_text(f'caption,note\nkept,{long}\n"open,1\n{other},2\n')
    (pool / "b.csv").write_text(f"caption,{long}\nalso kept,1\n")
    (pool / "c.jsonl").write_text(f'{{"caption": "kept too", "note": "{long}"}}\n{{"caption": "{other}"}}\n')
    found = run_import(out, pool)
    assert found.captions == {"kept": 1, "also kept": 1, "kept too": 1}
    assert found.rejects == [("a.csv", 1, "broken_quotes"), ("a.csv", 2, "too_long"), ("c.jsonl", 1, "too_long")]
    assert all(len(value) <= 200 for value in _shown(found))


def test_lines_too_long_for_anybody(tmp_path: Path, out: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    huge = b"x" * (MAX_LINE + 10)
    (pool / "a.csv").write_bytes(b"caption,url\na dog,https://x/1\n" + huge + b",https://x/2\na cat,https://x/3\n")
    (pool / "b.jsonl").write_bytes(b'{"caption": "a bird"}\n{"caption": "' + huge + b'"}\n{"caption": "a fish"}\n')
    found = run_import(out, pool)
    assert found.captions == {"a dog": 1, "a cat": 1, "a bird": 1, "a fish": 1}
    assert found.rejects == [("a.csv", 1, "too_long"), ("b.jsonl", 1, "too_long")]


def test_line_ends_of_all_machines(tmp_path: Path, out: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "mac.csv").write_bytes(b'caption,url\ra dog,https://x/1\r"open,x\ra cat,https://x/2\r')
    (pool / "mixed.csv").write_bytes(b"caption,url\na bird,https://x/3\r\na fish,https://x/4\nshort\r\n")
    (pool / "two.jsonl").write_bytes(b'{"caption": "a horse"}\r\n\r\n{\r\n{"caption": "a cow"}')
    found = run_import(out, pool)
    assert sorted(found.captions) == ["a bird", "a cat", "a cow", "a dog", "a fish", "a horse"]
    assert found.reasons == {"broken_quotes": 1, "wrong_columns": 1, "not_json": 1}


def test_what_duckdb_reads_is_read_so_beside_a_bad_line(tmp_path: Path, out: Path) -> None:
    """A good row has the same fate whether or not another line is broken."""
    rows = [
        b"a dog,https://x/1,",
        b"a cat,https://x/2,,",
        b'a bird, "https://x/3"',
        b'"",https://x/4',
        b"",
        b'a "quoted" fish,https://x/5',
        b'"a, ""b"" c",https://x/6',
        b" spaces ,https://x/7",
        b"NaN,https://x/8",
    ]
    (tmp_path / "p.csv").write_bytes(b"caption,url\n" + b"\n".join(rows) + b"\n")
    good = run_import(out, tmp_path / "p.csv")
    (tmp_path / "p.csv").write_bytes(b"caption,url\n" + b"\n".join([*rows, b'"broken,x', b""]))
    beside = run_import(out.parent / "beside", tmp_path / "p.csv")
    assert {row["url"]: row["caption_id"] for row in good.image_rows} == {
        row["url"]: row["caption_id"] for row in beside.image_rows
    }
    assert len(good.image_rows) == 7
    assert beside.rejects == [*good.rejects, ("p.csv", 8, "broken_quotes")]


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_bad_lines_give_the_same_bytes_however_they_are_read(tmp_path: Path, name: str) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for part in range(4):
        numbers = range(part * 3000, part * 3000 + 3000)
        if name == "p.csv":
            lines = [
                f'"open {n},https://x/{n}' if n % 97 == 0 else f"caption {n % 500},https://x/{n}" for n in numbers
            ]
            lines.insert(0, "caption,url")
        else:
            lines = ["{" if n % 97 == 0 else json.dumps({"caption": f"caption {n % 500}", "n": n}) for n in numbers]
        (pool / f"{part}{name}").write_text("\n".join(lines))
    one = run_import(tmp_path / "1", pool)
    two = run_import(tmp_path / "2", pool, workers=3, memory_gib=0.4)
    assert one.manifest.counts["rejected"] == {"broken_quotes" if name == "p.csv" else "not_json": 124}
    assert content(one.out) == content(two.out)


def test_rows_of_parquet_are_rejected_one_by_one_too(tmp_path: Path, out: Path) -> None:
    good = pa.array([b"fine", b"bad\xff", b"nul\0", b"z"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, good.buffers())
    widths = pa.array([100, None, 300, 400]).cast(pa.decimal128(21, 2))
    pool = write_parquet(tmp_path / "p.parquet", TEXT=text, URL=["https://x/1"] * 4, WIDTH=widths)
    found = run_import(out, pool)
    assert found.captions == {"fine": 1, "z": 1}
    assert found.rejects == [("p.parquet", 1, "undecodable"), ("p.parquet", 2, "undecodable")]


def test_a_bad_line_may_speak_of_full_disks(tmp_path: Path, out: Path) -> None:
    """DuckDB quotes the line in its error, in which a full disk is looked for."""
    (tmp_path / "p.csv").write_text('caption,url\na dog,https://x/1\n"no space left on device, permission denied\n')
    assert run_import(out, tmp_path / "p.csv").rejects == [("p.csv", 1, "broken_quotes")]


def test_a_bad_line_far_down_is_one_row_too(tmp_path: Path, out: Path) -> None:
    lines = [f"caption {n % 100},https://x/{n}" for n in range(150_000)]
    (tmp_path / "p.csv").write_text("\n".join(["caption,url", *lines, '"open,https://x/9', "last,https://x/1"]))
    found = run_import(out, tmp_path / "p.csv")
    assert found.rejects == [("p.csv", 150_000, "broken_quotes")]
    assert found.manifest.counts["kept"] == 150_001


def test_a_rejected_line_shows_no_password(tmp_path: Path, out: Path) -> None:
    (tmp_path / "p.csv").write_text("caption,url\na dog,https://x/1\nshort https://me:secret@x/2\n")
    assert "secret" not in "".join(_shown(run_import(out, tmp_path / "p.csv")))


LINES = st.lists(st.text(st.sampled_from('a",\t\\ \r\0é'), max_size=8), max_size=12)


LAYOUT = Layout("own", {"caption": (0,), "url": (1,)})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LINES, st.sampled_from([",", "\t"]))
def test_any_lines_are_rows_or_bad_rows(lines: list[str], delimiter: str) -> None:
    """Nothing is lost: every row that csv reads of the whole is one, and every line lies in a row or is a bad one."""
    text = [line + "\n" for line in lines]
    found = list(separated_rows(iter(text), 2, LAYOUT, delimiter, quoted=True, header=False))
    assert all(len(row.values) == 2 for row in found)
    bad = [row for row in found if row.fault is not None]
    assert len(found) <= len(lines)
    try:
        whole = [row for row in csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=True) if row]
    except csv.Error:
        assert bad
        return
    if all(len(row) == 2 and "\0" not in "".join(row) for row in whole):
        assert [list(row.values) for row in found] == whole
