"""The import stage as a whole: what it keeps and rejects, formats, and the same bytes however it runs."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdkit.captions.config import ImportConfig
from cdkit.captions.importing import file_groups, shard_count
from cdkit.core.errors import InputError
from cdkit.core.shards import parts
from cdkit.core.storage import SourceFile
from cdkit.core.text import caption_id, clean_caption
from cdkit.execute import execute
from tests.captions.running import content, laion_rows, run_import, write_jsonl, write_parquet
from tests.support import material


def test_captions_are_merged_when_clip_cannot_tell_them_apart(tmp_path: Path, out: Path) -> None:
    first = write_parquet(tmp_path / "a.parquet", TEXT=["A  Dog", "Caf&eacute;"], URL=["https://x/1", "https://x/2"])
    second = write_parquet(tmp_path / "b.parquet", TEXT=["a dog", "CAFÉ", "a cat"], URL=["https://x/3", None, ""])
    found = run_import(out, first, second)
    # The form seen first is the one shown, in the order the files were given.
    assert found.captions == {"A  Dog": 2, "Caf&eacute;": 2, "a cat": 1}
    rows = {(row["source"], row["url"]): row["caption_id"] for row in found.image_rows}
    assert rows[("a.parquet", "https://x/1")] == rows[("b.parquet", "https://x/3")] == caption_id("a dog")
    assert [row["url"] for row in found.image_rows].count(None) == 2
    assert run_import(tmp_path / "other", second, first).captions == {"a dog": 2, "CAFÉ": 2, "a cat": 1}


def test_every_reason_to_reject(tmp_path: Path, out: Path) -> None:
    rows: list[tuple[Any, ...]] = [
        ("kept", "https://x/1", "UNLIKELY", 0.1, 400, 300),
        (" \n", "https://x/1", "UNLIKELY", 0.1, 400, 300),
        ("&nbsp;", "ftp://x/1", "UNLIKELY", 0.1, 400, 300),
        (None, "https://x/1", "UNLIKELY", 0.1, 400, 300),
        ("x" * 4001, "https://x/1", "UNLIKELY", 0.1, 400, 300),
        ("y" * 4000, "HTTPS://x/1", "UNLIKELY", 0.1, 400, 300),
        ("ftp", "ftp://x/1", "UNLIKELY", 0.1, 400, 300),
        ("no host", "http:///x", "UNLIKELY", 0.1, 400, 300),
        ("unsure", "https://x/1", "UNSURE", 0.1, 400, 300),
        ("unsafe", "https://x/1", "nsfw ", 0.1, 400, 300),
        ("probably", "https://x/1", "UNLIKELY", 0.5, 400, 300),
        ("unrated", "https://x/1", "", None, 400, 300),
        ("small", "https://x/1", "UNLIKELY", 0.1, 400, 20),
        ("long", "https://x/1", "UNLIKELY", 0.1, 1000, 100),
        ("sides unknown", "https://x/1", "UNLIKELY", 0.1, None, None),
    ]
    names = ("TEXT", "URL", "NSFW", "punsafe", "WIDTH", "HEIGHT")
    pool = write_parquet(
        tmp_path / "pool.parquet", **dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    )
    found = run_import(out, pool, min_side=50, max_aspect_ratio=3.0)
    assert sorted(found.captions) == ["kept", "sides unknown", "y" * 4000]
    assert found.reasons == {
        **{"empty": 3, "too_long": 1, "bad_url": 2, "nsfw": 2, "punsafe": 1, "unrated": 1},
        **{"too_small": 1, "aspect": 1},
    }
    assert [row for _, row, reason in found.rejects if reason == "empty"] == [1, 2, 3]
    lenient = run_import(tmp_path / "2", pool, keep_unrated=True, nsfw_limit="nsfw", max_punsafe=1.0)
    assert {"unsure", "unsafe", "probably", "unrated", "small", "long"} <= set(lenient.captions)


def test_urls_are_kept_without_user_names_and_passwords(tmp_path: Path, out: Path) -> None:
    urls = [
        *("http://user:secret@x/1", "https://x/@user/2", "HTTP://secret@x:80/3", "ftp://user:secret@x/4", None),
        *("http://user:se@cret@x/6", "http://user:secret@[x/7"),
    ]
    pool = write_parquet(tmp_path / "pool.parquet", TEXT=[f"caption {n}" for n in range(len(urls))], URL=urls)
    found = run_import(out, pool)
    assert {row["url"] for row in found.image_rows} == {
        *("http://x/1", "https://x/@user/2", "HTTP://x:80/3", None, "http://x/6", "http://[x/7")
    }
    assert found.manifest.details["credentials"] == 5
    assert not any(b"cret" in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_a_pool_that_rates_nothing_is_not_a_rated_pool(tmp_path: Path, out: Path) -> None:
    pool = write_parquet(
        tmp_path / "p.parquet", TEXT=["a", "b"], NSFW=pa.array(["", None]), punsafe=pa.nulls(2, pa.float32())
    )
    assert run_import(out, pool).reasons == {}


def test_impossible_values_become_null_and_are_counted(tmp_path: Path, out: Path) -> None:
    pool = write_parquet(
        tmp_path / "p.parquet",
        TEXT=["a", "b", "c"],
        # NaN is how tables say that they do not know.
        similarity=[6016.0, float("nan"), 0.3],
        WIDTH=[0, -1, 640],
        HEIGHT=["", "tall", "480.0"],
        md5=["0" * 32, "zz", None],
    )
    found = run_import(out, pool)
    assert found.manifest.details["impossible"] == {"similarity": 1, "width": 2, "height": 1, "md5": 1}
    (row,) = [row for row in found.image_rows if row["width"] is not None]
    assert (row["width"], row["height"], round(row["pool_similarity"], 6)) == (640, 480, 0.3)


def test_sides_are_swapped_only_for_laion400m_by_name(tmp_path: Path, out: Path) -> None:
    pool = write_parquet(tmp_path / "p.parquet", URL=["https://x/1"], TEXT=["a"], HEIGHT=[190], WIDTH=[143])
    assert run_import(out, pool).image_rows[0]["width"] == 143
    assert run_import(tmp_path / "2", pool, pool="laion400m").image_rows[0]["width"] == 190


ROWS = [
    {"caption": 'a "small" dog', "url": "https://x/1"},
    {"caption": "zwei\nZeilen, schön", "url": "https://x/2"},
    {"caption": "no url"},
]


def as_csv(delimiter: str) -> bytes:
    lines = [f"caption{delimiter}url"]
    for row in ROWS:
        caption = row["caption"].replace('"', '""')
        lines.append(f'"{caption}"{delimiter}{row.get("url", "")}')
    return ("\r\n".join(lines) + "\r\n").encode()


@pytest.mark.parametrize(
    "name", ["p.csv", "p.tsv", "p.jsonl", "p.ndjson", "p.csv.gz", "p.jsonl.zst", "p.tsv.zst", "p[1]*.csv"]
)
def test_text_formats_give_the_same_rows(tmp_path: Path, out: Path, name: str) -> None:
    if "json" in name:
        data = write_jsonl(tmp_path / "rows", ROWS).read_bytes()
    else:
        data = as_csv("\t" if "tsv" in name else ",")
    if name.endswith(".gz"):
        data = gzip.compress(data)
    elif name.endswith(".zst"):
        data = pa.compress(data, codec="zstd", asbytes=True)
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / name).write_bytes(data)
    found = run_import(out, tmp_path / "pool")
    assert found.captions == {row["caption"]: 1 for row in ROWS}
    assert sorted(row["url"] or "" for row in found.image_rows) == ["", "https://x/1", "https://x/2"]


def test_headerless_and_foreign_csv(tmp_path: Path, out: Path) -> None:
    (tmp_path / "cc3m.tsv").write_text('"quoted\thttps://x/1\na dog\thttps://x/2\n')
    (tmp_path / "cc12m.tsv").write_text("https://x/3\ta cat\n")
    (tmp_path / "excel.csv").write_bytes("caption;url\nein Vogel;https://x/4\n".encode("utf-16"))
    found = run_import(out, *sorted(tmp_path.iterdir()))
    assert sorted(found.captions) == ['"quoted', "a cat", "a dog", "ein Vogel"]
    assert all(row["url"] for row in found.image_rows)


def test_only_the_undecodable_row_is_rejected(tmp_path: Path, out: Path) -> None:
    good = pa.array([b"fine", b"bad\xff", b"z"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, good.buffers())
    write_parquet(tmp_path / "a.parquet", TEXT=text, URL=["https://x/1"] * 3)
    (tmp_path / "b.csv").write_bytes(
        b"caption,url\nok csv,https://x/1\nb\xffd,https://x/2\n\xc3\xa9t\xc3\xa9,https://x/3\n"
    )
    (tmp_path / "c.jsonl").write_bytes(b'{"caption": "ok json"}\n{"caption": "half \\ud83d"}\n{"caption": "\xfe"}\n')
    found = run_import(out, *sorted(tmp_path.iterdir()))
    assert sorted(found.captions) == ["fine", "ok csv", "ok json", "z", "été"]
    assert found.rejects == [
        ("a.parquet", 1, "undecodable"),
        ("b.csv", 1, "undecodable"),
        ("c.jsonl", 1, "undecodable"),
        ("c.jsonl", 2, "undecodable"),
    ]


def test_binary_captions_without_annotation_are_text(tmp_path: Path, out: Path) -> None:
    pool = write_parquet(tmp_path / "p.parquet", caption=pa.array(["grün".encode(), b"a"], pa.binary()))
    assert sorted(run_import(out, pool).captions) == ["a", "grün"]


def test_a_rating_that_first_appears_late_in_jsonl_counts(tmp_path: Path, out: Path) -> None:
    rows: list[dict[str, Any]] = [{"caption": f"c{n}"} for n in range(1200)]
    found = run_import(
        out, write_jsonl(tmp_path / "p.jsonl", [*rows, {"caption": "bad", "punsafe": 0.9}]), keep_unrated=True
    )
    assert found.rejects == [("p.jsonl", 1200, "punsafe")]


def test_two_captions_with_one_id_reject_the_later(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cdkit.captions import bucketing

    real = bucketing.digests_of

    def colliding(digest: pa.Array, caption: pa.Array) -> Any:
        ids, checks, blank = real(digest, caption)
        return ids * 0 + 5, checks, blank

    monkeypatch.setattr(bucketing, "digests_of", colliding)
    pool = write_parquet(tmp_path / "p.parquet", caption=["a dog", "a cat", "A DOG", "a bird"])
    found = run_import(out, pool)
    assert found.captions == {"a dog": 2}
    assert found.rejects == [("p.parquet", 1, "id_collision"), ("p.parquet", 3, "id_collision")]
    assert found.manifest.details["files"][0]["rejected"] == {"id_collision": 2}


def test_files_of_one_name_are_told_apart(tmp_path: Path, out: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_parquet(tmp_path / folder / "p.parquet", caption=["x", ""])
    found = run_import(out, tmp_path / "a", tmp_path / "b")
    assert found.rejects == [("p.parquet", 1, "empty"), ("p.parquet#2", 1, "empty")]


def test_workers_threads_and_memory_do_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdkit.captions.importing.BYTES_PER_SHARD", 20_000)
    pool = tmp_path / "pool"
    pool.mkdir()
    for part in range(3):
        pq.write_table(pa.table(laion_rows(2000, part * 1500)), pool / f"{part}.parquet", row_group_size=500)
    one = run_import(tmp_path / "1", pool, workers=1)
    two = run_import(tmp_path / "2", pool, workers=2, memory_gib=0.1)
    alone = run_import(tmp_path / "3", pool / "0.parquet", workers=4)
    assert len(parts(one.out / "captions")) >= 4
    assert content(one.out) == content(two.out)
    assert one.manifest.fingerprint == two.manifest.fingerprint
    assert content(alone.out) == content(run_import(tmp_path / "4", pool / "0.parquet").out)
    for part in parts(one.out / "image_rows"):
        ids = pq.read_table(part)["caption_id"].to_pylist()
        assert ids == sorted(ids)


def test_a_finished_folder_is_found_done_without_its_intermediates(tmp_path: Path, out: Path) -> None:
    pool = write_parquet(tmp_path / "p.parquet", **laion_rows(500))
    first = run_import(out, pool)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("part-*")}
    (out / "manifest.json").rename(out / "started.json")
    again = execute("import", ImportConfig(captions=[str(pool)], workers=1), out)
    assert (again.state, again.manifest.counts) == ("done", first.manifest.counts)
    assert again.manifest.details == first.manifest.details
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("part-*")}


def test_shards_and_groups_follow_from_sizes_alone() -> None:
    def files(number: int, size: int, name: str = "p.parquet") -> list[SourceFile]:
        return [SourceFile(f"/{n}/{name}", name, size) for n in range(number)]

    assert [shard_count(files(1, size << 20)) for size in (0, 4, 5, 25, 1 << 20)] == [1, 1, 2, 8, 1024]
    assert shard_count(files(1, 24 << 20, "p.csv")) == 2
    assert len(file_groups(files(32, 1 << 30))) == 32
    assert len(file_groups(files(41_455, 1 << 20))) < 700
    assert [file.url for group in file_groups(files(9, 3 << 20)) for _, _, file in group.files] == [
        f"/{n}/p.parquet" for n in range(9)
    ]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def test_remote_files_over_fsspec(tmp_path: Path, out: Path, server: str) -> None:
    pytest.importorskip("aiohttp")
    write_parquet(tmp_path / "p.parquet", caption=["a dog"], url=["https://x/1"])
    (tmp_path / "q.csv.gz").write_bytes(gzip.compress(b"caption\na cat\n"))
    found = run_import(out, f"{server}/p.parquet", f"{server}/q.csv.gz")
    assert sorted(found.captions) == ["a cat", "a dog"]


def test_fsspec_memory_files(out: Path) -> None:
    import fsspec

    with fsspec.open("memory://pool/p.csv", "wb") as file:
        file.write(b"caption\na dog\n")
    assert run_import(out, "memory://pool/p.csv").captions == {"a dog": 1}


VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=8), st.booleans())
def test_any_rows_survive_csv_and_jsonl(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], crlf: bool
) -> None:
    """The same rows through csv, jsonl and parquet give the same captions, or fail as an empty pool does."""
    folder = tmp_path_factory.mktemp("fuzz")
    end = "\r\n" if crlf else "\n"
    quoted = [",".join('"' + value.replace('"', '""') + '"' for value in row) for row in [("caption", "note"), *rows]]
    (folder / "p.csv").write_bytes("".join(line + end for line in quoted).encode())
    write_jsonl(folder / "p.jsonl", [{"caption": caption, "note": note} for caption, note in rows])
    write_parquet(folder / "p.parquet", caption=[caption for caption, _ in rows])
    expected: dict[str, int] = {}
    for caption, _ in rows:
        if clean_caption(caption):
            expected[clean_caption(caption)] = expected.get(clean_caption(caption), 0) + 1
    for name in ("p.csv", "p.jsonl", "p.parquet"):
        if not expected:
            with pytest.raises(InputError):
                run_import(folder / f"out-{name}", folder / name)
            continue
        found = run_import(folder / f"out-{name}", folder / name)
        assert {clean_caption(caption): rows for caption, rows in found.captions.items()} == expected


@pytest.mark.slow
def test_ray_gives_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    pool = write_parquet(tmp_path / "p.parquet", **laion_rows(3000))
    local = run_import(tmp_path / "1", pool)
    ray = run_import(tmp_path / "2", pool, workers=2, engine="ray")
    assert content(local.out) == content(ray.out)


@pytest.mark.real
@pytest.mark.timeout(1200)
def test_all_real_files_add_up(out: Path) -> None:
    """Against a count of the same rules written out in plain Python."""
    files = material.caption_files()
    ids: dict[str, int] = {}
    bad_urls = rows = 0
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(columns=["TEXT", "URL"]):
            for text, url in zip(batch["TEXT"].to_pylist(), batch["URL"].to_pylist(), strict=True):
                rows += 1
                if url and not url.lower().startswith(("http://", "https://")):
                    bad_urls += 1
                    continue
                ids[text] = ids.get(text, 0) + 1
    distinct: dict[str, int] = {}
    for text, number in ids.items():
        distinct[clean_caption(text)] = distinct.get(clean_caption(text), 0) + number
    found = run_import(out, *files, workers=2)
    assert found.manifest.counts["in"] == rows == 953_678
    assert found.manifest.counts["rejected"] == {"bad_url": bad_urls}
    assert {clean_caption(caption): number for caption, number in found.captions.items()} == distinct
