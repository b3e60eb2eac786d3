"""Pool files that are damaged, that are no files, or tables of the strangest kind: refused by name, or read."""

from __future__ import annotations

import datetime
import decimal
import gzip
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdkit.cli.app import execute_command
from cdkit.core.errors import InputError
from tests.captions.running import run_import, write_parquet

ROWS = 400


def _parquet(path: Path) -> bytes:
    numbers = range(ROWS)
    write_parquet(path, caption=[f"photo {n}" for n in numbers], url=[f"https://x/{n * 7919}" for n in numbers])
    return path.read_bytes()


def _text() -> bytes:
    return b"caption,url\n" + b"".join(b"photo %d,https://x/%d\n" % (n, n * 7919) for n in range(20_000))


def _zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def _cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "one byte short": lambda data: data[:-1],
    "footer short": lambda data: data[:-8],
    "half": _cut(0.5),
    "a beginning": lambda data: data[:20],
    "an end": lambda data: data[200:],
    "wrong magic": lambda data: b"PAR2" + data[4:-4] + b"PAR2",
    "encrypted": lambda data: b"PARE" + data[4:-4] + b"PARE",
    "endless footer": lambda data: data[:-8] + (2**31 - 1).to_bytes(4, "little") + data[-4:],
    "zeros": lambda data: bytes(len(data)),
    "noise": lambda data: random.Random(1).randbytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_parquet_that_is_damaged(tmp_path: Path, out: Path, damage: str) -> None:
    path = tmp_path / "p.parquet"
    path.write_bytes(DAMAGE[damage](_parquet(path)))
    with pytest.raises(InputError, match=r"^p\.parquet: cannot be read as parquet: [^\n]+$") as error:
        run_import(out, path)
    assert "get it again" in error.value.hint


@pytest.mark.parametrize("seed", range(12))
def test_parquet_with_bytes_changed_is_rows_or_an_input_error(tmp_path: Path, out: Path, seed: int) -> None:
    path = tmp_path / "p.parquet"
    chosen = random.Random(seed)
    data = bytearray(_parquet(path))
    for _ in range(chosen.choice([1, 4, 30])):
        data[chosen.randrange(4, len(data) - 8)] = chosen.randrange(256)
    path.write_bytes(bytes(data))
    assert execute_command(["index", "import", "--captions", str(path), "--workers", "1", "--out", str(out)]) in (0, 3)


@pytest.mark.parametrize("pack", [gzip.compress, _zstd], ids=["gz", "zst"])
@pytest.mark.parametrize("cut", [1, 5, 9, 100, 0.5, 0.001])
def test_compressed_text_that_is_cut_off(
    tmp_path: Path, out: Path, pack: Callable[[bytes], bytes], cut: float
) -> None:
    """DuckDB takes a cut zstd file for a whole one: thousands of rows less, and not a word."""
    packed = pack(_text())
    name = "p.csv.gz" if pack is gzip.compress else "p.csv.zst"
    (tmp_path / name).write_bytes(packed[:-cut] if isinstance(cut, int) else packed[: int(len(packed) * cut)])
    with pytest.raises(InputError, match=name) as error:
        run_import(out, tmp_path / name)
    assert "cut off" in error.value.hint
    assert not list(out.glob("captions/part-*"))


def test_what_is_packed_shows_in_the_bytes_and_not_in_the_name(tmp_path: Path, out: Path) -> None:
    text = b"caption,url\na dog,https://x/1\n"
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "plain.csv.zst").write_bytes(text)
    (pool / "packed.csv").write_bytes(_zstd(text.replace(b"dog", b"cat")))
    (pool / "other.csv.gz").write_bytes(_zstd(text.replace(b"dog", b"bird")))
    (pool / "two.csv.gz").write_bytes(gzip.compress(b"caption,url\n") + gzip.compress(b"a fish,https://x/1\n"))
    assert set(run_import(out, pool).captions) == {"a dog", "a cat", "a bird", "a fish"}
    broken = tmp_path / "broken.csv.gz"
    packed = bytearray(gzip.compress(_text()))
    packed[len(packed) // 2] ^= 255
    broken.write_bytes(bytes(packed))
    with pytest.raises(InputError, match=r"broken\.csv\.gz: cannot be read"):
        run_import(out.parent / "broken", broken)


PAGE = b"<!DOCTYPE html>\n<html><body>Please log in, or wait</body></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["p.parquet", "p.csv", "p.tsv", "p.jsonl"])
@pytest.mark.parametrize(("data", "what"), [(PAGE, "is a web page"), (POINTER, "is a Git LFS pointer")])
def test_downloads_that_are_something_else(tmp_path: Path, out: Path, name: str, data: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}: {what}"):
        run_import(out, tmp_path / name)


@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.jsonl", "p.csv.gz", "p.jsonl.zst"])
def test_noise(tmp_path: Path, out: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(random.Random(5).randbytes(20_000))
    assert execute_command(["index", "import", "--captions", str(tmp_path / name), "--out", str(out)]) == 3
    said = capsys.readouterr().err
    assert len(said) < 3000
    # A terminal is not written to by files.
    assert all(letter.isprintable() or letter == "\n" for letter in said)


TEXT_TYPES = {
    "large_string": pa.array(["a dog", "a cat"], pa.large_string()),
    "string_view": pa.array(["a dog", "a cat"], pa.string_view()),
    "dictionary": pa.array(["a dog", "a cat"]).dictionary_encode(),
    "binary": pa.array([b"a dog", b"a cat"], pa.binary()),
    "large_binary": pa.array([b"a dog", b"a cat"], pa.large_binary()),
    "fixed_size_binary": pa.array([b"a dog", b"a cat"], pa.binary(5)),
}
OTHER_TYPES = {
    "list": pa.array([["a"], ["b"]]),
    "large_list": pa.array([["a"], ["b"]], pa.large_list(pa.string())),
    "fixed_size_list": pa.array([["a"], ["b"]], pa.list_(pa.string(), 1)),
    "struct": pa.array([{"x": "a"}, {"x": "b"}]),
    "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int32())),
    "int64": pa.array([1, 2]),
    "double": pa.array([1.5, float("nan")]),
    "bool": pa.array([True, False]),
    "timestamp": pa.array([datetime.datetime(2020, 1, 1), None]),
    "date32": pa.array([datetime.date(2020, 1, 1), None]),
    "time64": pa.array([datetime.time(1, 2), None]),
    "duration": pa.array([datetime.timedelta(1), None]),
    "decimal128": pa.array([decimal.Decimal("1.5"), None]),
}


@pytest.mark.parametrize("kind", TEXT_TYPES)
@pytest.mark.parametrize("beside", ["clean rows", "a row that is no text"])
def test_text_of_any_type(tmp_path: Path, out: Path, kind: str, beside: str) -> None:
    last = b"https://x/2" if beside == "clean rows" else b"https://x/\xff"
    urls = pa.Array.from_buffers(pa.string(), 2, pa.array([b"https://x/1", last]).buffers())
    found = run_import(out, write_parquet(tmp_path / "p.parquet", caption=TEXT_TYPES[kind], url=urls))
    assert set(found.captions) == ({"a dog", "a cat"} if beside == "clean rows" else {"a dog"})
    assert sum(found.reasons.values()) == 2 - len(found.captions)


@pytest.mark.parametrize("kind", OTHER_TYPES)
@pytest.mark.parametrize("column", ["caption", "url"])
def test_captions_and_urls_that_are_no_text(tmp_path: Path, out: Path, kind: str, column: str) -> None:
    columns = {"caption": pa.array(["a", "b"]), "url": pa.array(["https://x/1", None]), column: OTHER_TYPES[kind]}
    with pytest.raises(InputError, match=rf"p\.parquet: column '{column}' holds {kind}.* values, not text") as error:
        run_import(out, write_parquet(tmp_path / "p.parquet", **columns))
    assert f"--{column}-column" in error.value.hint


def test_other_columns_may_be_of_any_type(tmp_path: Path, out: Path) -> None:
    odd = {
        "width": pa.array([{"x": 1}, None]),
        "height": pa.array([[1], None]),
        "similarity": pa.array([datetime.datetime(2020, 1, 1), None]),
        "md5": pa.array([b"\xff" * 16, None]),
        "pwatermark": pa.array([b"\xff", None]),
        "note": pa.array([b"\xff", None]),
    }
    found = run_import(out, write_parquet(tmp_path / "p.parquet", caption=["a dog", "a cat"], **odd))
    assert found.captions == {"a dog": 1, "a cat": 1}
    assert {row[name] for row in found.image_rows for name in ("width", "height", "pool_similarity", "md5")} == {None}
    assert found.manifest.details["impossible"] == dict.fromkeys(
        ("width", "height", "similarity", "pwatermark", "md5"), 1
    )


def test_a_table_without_a_caption_says_which_columns_there_are(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"column {n}" for n in range(50_000)]
    (tmp_path / "p.csv").write_text(f"{','.join(names)}\n{','.join(['x'] * len(names))}\n")
    pool = ["--captions", str(tmp_path / "p.csv"), "--out", str(out)]
    assert execute_command(["index", "import", *pool]) == 3
    assert "column 19 and 49,980 more" in capsys.readouterr().err
    assert execute_command(["index", "import", *pool, "--caption-column", "nothing like it"]) == 2
    assert len(capsys.readouterr().err) < 2000


def test_the_caption_among_thousands_of_columns(tmp_path: Path, out: Path) -> None:
    columns = {f"c_{n}": [n] for n in range(5000)}
    write_parquet(tmp_path / "a.parquet", **columns, Caption=["a dog"])
    (tmp_path / "b.csv").write_text(",".join([*columns, "caption"]) + "\n" + ",".join(["x"] * 5000 + ["a cat"]) + "\n")
    assert set(run_import(out, tmp_path / "a.parquet", tmp_path / "b.csv").captions) == {"a dog", "a cat"}


@pytest.mark.parametrize("where", ["itself", "a folder", "a glob"])
@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device"])
@pytest.mark.timeout(60)
def test_what_is_no_file_is_refused_and_not_waited_for(
    tmp_path: Path, out: Path, where: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "a.csv").write_text("caption\na dog\n")
    monkeypatch.chdir(pool)
    if kind == "a named pipe":
        os.mkfifo("p.csv")
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("p.csv")
    else:
        os.symlink("/dev/zero", "p.csv")
    given = {"itself": pool / "p.csv", "a folder": pool, "a glob": pool / "*.csv"}[where]
    with pytest.raises(InputError, match=rf"p\.csv is {kind}, not a file"):
        run_import(out, given)


def test_links_that_lead_nowhere_and_folders_that_are_called_like_files(tmp_path: Path, out: Path) -> None:
    (tmp_path / "gone.csv").symlink_to("nowhere.csv")
    (tmp_path / "round.csv").symlink_to("round.csv")
    (tmp_path / "empty.parquet").mkdir()
    (tmp_path / "full.parquet").mkdir()
    write_parquet(tmp_path / "full.parquet" / "part-0.parquet", caption=["a dog"])
    for name in ("gone.csv", "round.csv", "empty.parquet", "not-there.csv", "x" * 300 + ".csv"):
        with pytest.raises(InputError) as error:
            run_import(out, tmp_path / name)
        assert error.value.hint
    # As Spark writes its tables.
    assert run_import(out, tmp_path / "full.parquet").captions == {"a dog": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path, out: Path) -> None:
    write_parquet(tmp_path / "p.parquet", caption=["a dog"]).chmod(0)
    with pytest.raises(InputError, match=r"p\.parquet"):
        run_import(out, tmp_path / "p.parquet")


def test_names_that_are_not_utf8(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = tmp_path / os.fsdecode(b"p\xf6\xf6l")
    pool.mkdir()
    text = b"caption,url\na dog,https://x/1\nshort\n"
    (pool / os.fsdecode(b"caf\xe9.csv")).write_bytes(text)
    (pool / os.fsdecode(b"caf\xe9.csv.zst")).write_bytes(_zstd(text))
    (pool / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(b'{"caption": "a cat"}\n{"caption": "\xff"}\n')
    write_parquet(tmp_path / "p.parquet", caption=["a bird"]).rename(pool / os.fsdecode(b"caf\xe9.parquet"))
    (pool / "z.csv").write_bytes(text)
    run = ["index", "import", "--captions", str(pool), "--out", str(out), "--format", "json"]
    assert execute_command(run) == 0
    assert capsys.readouterr().out.encode("utf-8")
    rows = [row for path in (out / "image_rows").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    names = [f"caf\\xe9.{kind}" for kind in ("csv", "csv.zst", "jsonl", "parquet")]
    assert sorted(row["source"] for row in rows) == [*names, "z.csv"]
    assert (out / "manifest.json").read_bytes().decode("utf-8")
    assert execute_command(run) == 0
