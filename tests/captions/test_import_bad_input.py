"""Files that cannot be imported: the error names the file, the line and what to do."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from cdkit.captions.config import ImportConfig
from cdkit.core.errors import ConfigError, InputError
from tests.captions.running import run_import


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.csv", b'"caption,url\na,b\n', r"p\.csv: the header line is broken"),
        ("p.csv", b"caption,url\na,b,c\nd\n", r"No row of the pool was kept \(2 wrong_columns\)"),
        ("p.jsonl", b"[1]\n{\n", r"No row of the pool was kept \(1 not_json, 1 not_object\)"),
        ("p.jsonl", b'{"caption": ["a", "b"]}\n', r"holds lists or objects, not text"),
        ("p.parquet", b"PAR1 cut short", r"p\.parquet: cannot be read as parquet"),
        ("p.parquet", b"", r"p\.parquet: cannot be read as parquet"),
        ("p.csv", b"caption,url\n", r"The pool is empty"),
        ("p.csv", b"", r"The pool is empty"),
        ("p.csv", b"one,two\n1,2\n", r"no caption column found; the columns are one, two"),
        ("p.csv.gz", gzip.compress(b"caption,url\n" + b"a,https://x\n" * 20_000)[:-20], r"p\.csv\.gz: "),
        ("p.csv", b"caption,url\na,ftp://x\n", r"No row of the pool was kept \(1 bad_url\)"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, out: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        run_import(out, tmp_path / name)
    assert error.value.hint
    assert not list(out.glob("captions/part-*"))


def test_all_bad_files_are_listed(tmp_path: Path, out: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no")
    (tmp_path / "b.csv").write_text("x,y\n1,2\n")
    (tmp_path / "c.csv").write_text("caption\nfine\n")
    with pytest.raises(InputError, match=r"(?s)a\.parquet: .*b\.csv: no caption column"):
        run_import(out, *sorted(tmp_path.iterdir()))
    with pytest.raises(ConfigError, match=r"did you mean 'caption'"):
        run_import(tmp_path / "2", tmp_path / "c.csv", caption_column="captions")
    with pytest.raises(ValueError, match="no pool called"):
        ImportConfig(captions=["x"], pool="laion")
