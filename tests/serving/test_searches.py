"""Our own search: the command's JSON, pages, tables, similarities, and what never comes out."""

from __future__ import annotations

import csv
import io
import json
import shutil
import threading
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from cdkit.core.shards import part_name, parts, read_parts, schema, write_shard
from cdkit.embedded import default_threshold
from cdkit.fetching.blocklist import read_blocklist
from cdkit.index.changes.remove import remove
from cdkit.index.search import search
from cdkit.serving.catalogue import open_catalogue
from tests.cli.running import ran
from tests.support.hashing_encoder import HashingEncoder
from tests.support.photo_pool import PoolPicture, index_of
from tests.support.served import Running, Service, serving
from tests.support.small_index import grammar_captions, make_index

QUERY = "a photo of a star"


def test_search_answers_with_the_command_s_json(service: Running, index_folder: Path) -> None:
    told = service.client.get("/search", params={"q": QUERY, "min_similarity": 0.9, "limit": 7}).json()
    printed = ran(["index", "search", index_folder, QUERY, "--min-similarity", 0.9, "--limit", 7, "--format", "json"])
    assert {name: told[name] for name in printed.data.keys() - {"encoded"}} == {
        name: printed.data[name] for name in printed.data.keys() - {"encoded"}
    }
    assert told["index"] == "scenes"
    assert len(told["results"]) == 7


def test_a_cursor_leads_through_all_results(service: Running, index_folder: Path) -> None:
    pages, cursor = [], ""
    while cursor is not None:
        params = {"q": QUERY, "min_similarity": 0.0, "limit": 100, "cursor": cursor}
        page = service.client.get("/search", params=params).json()
        pages.append([result["caption_id"] for result in page["results"]])
        cursor = page["cursor"]
    expected = search(index_folder, [QUERY], min_similarity=0.0, limit=10_000)[0].results
    assert len(pages) > 2
    assert [number for page in pages for number in page] == [str(m.caption_id) for m in expected]
    for wrong in ("20.other", "x", "-1.abc"):
        answer = service.client.get("/search", params={"q": QUERY, "cursor": wrong})
        assert answer.status_code == 400
        assert "changed" in answer.json()["error"]["message"]


def test_tables_are_sent_as_a_stream(service: Running, tmp_path: Path) -> None:
    params = {"q": QUERY, "min_similarity": "-1"}
    read = list(csv.DictReader(io.StringIO(service.client.get("/search", params={**params, "format": "csv"}).text)))
    answer = service.client.get("/search", params={**params, "format": "parquet"})
    (tmp_path / "rows.parquet").write_bytes(answer.content)
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.schema.equals(schema("candidates"))
    assert "attachment" in answer.headers["content-disposition"]
    assert len(read) == len(table) > 600
    assert pq.ParquetFile(tmp_path / "rows.parquet").num_row_groups > 1
    assert [row["url"] for row in read] == table["url"].to_pylist()
    assert [int(row["caption_id"]) for row in read] == table["caption_id"].to_pylist()


def test_similarities_count_as_search_does(service: Running, index_folder: Path) -> None:
    told = service.client.get("/similarities", params={"q": QUERY}).json()
    assert told["complete"]
    assert not told["estimated"]
    assert told["threshold"] == default_threshold()
    expected = search(index_folder, [QUERY], min_similarity=0.6, limit=10_000)[0].results
    # Of those within rounding of the threshold nobody can say.
    assert abs(sum(value >= 0.6 for value in told["similarities"]) - len(expected)) <= 1


def test_the_command_can_be_pasted(service: Running, index_folder: Path) -> None:
    params = {"q": "it's; rm -rf $HOME", "min_similarity": "0.7"}
    command = service.client.get("/command", params=params).json()["command"]
    assert command == (
        f"cdkit retrieve {index_folder} 'it'\"'\"'s; rm -rf $HOME' --min-similarity 0.7 --out sets/it-s-rm-rf-home"
    )


@pytest.mark.parametrize(
    "params", [{}, {"q": ""}, {"q": " "}, {"q": "\0"}, {"q": "a", "limit": "0"}, {"q": "a", "min_similarity": "2"}]
)
def test_a_query_that_makes_no_sense_is_told_why(service: Running, params: dict[str, str]) -> None:
    for path in ("/search", "/similarities", "/command"):
        answer = service.client.get(path, params=params)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "configuration"


def test_unsafe_blocked_and_removed_images_never_come_out(tmp_path: Path) -> None:
    encoder, captions = HashingEncoder(32), grammar_captions(40)
    folder = make_index(tmp_path / "words", captions, encoder)
    rate(folder, "nsfw", {f"http://host/{number}-0.jpg": "NSFW" for number in ids(folder)[:5]})
    rate(
        folder, "punsafe", {f"http://host/{number}-{copy}.jpg": 0.9 for number in ids(folder)[5:9] for copy in (0, 1)}
    )
    blocked = f"http://host/{ids(folder)[10]}-0.jpg"
    catalogue = open_catalogue([folder], {"laion5B": folder}, blocked=frozenset({blocked}), encoder=encoder)
    with Service(catalogue).run() as service:
        assert _urls(service) == {url for url in _all_urls(folder) if not _hidden(url, folder)} - {blocked}
        gone = next(iter(sorted(_urls(service))))
        remove(folder, urls=[gone], captions=[captions[20]])
        assert gone not in _urls(service)
        told = service.client.post("/knn-service", content=json.dumps({"text": captions[20], "num_images": 40}))
        assert captions[20] not in {entry["caption"] for entry in told.json()}
        unsafe = {"ids": ids(folder)[5:9], "indice_name": "laion5B"}
        assert service.client.post("/metadata", content=json.dumps(unsafe)).json() == []


def ids(folder: Path) -> list[int]:
    return [number for table in read_parts(folder / "captions", ["caption_id"]) for number in table[0].to_pylist()]


def rate(folder: Path, column: str, ratings: dict[str, object]) -> None:
    """Write ratings into the image rows of a finished index, as --keep-unrated and another limit would keep them."""
    import pyarrow as pa

    for number, path in enumerate(parts(folder / "image_rows")):
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            row[column] = ratings.get(row["url"], row[column])
        table = pa.Table.from_pylist(rows, schema=schema("image_rows"))
        write_shard(folder / "image_rows" / part_name(number), table, fingerprint=f"rated-{column}-{number}")


def _all_urls(folder: Path) -> set[str]:
    return {url for table in read_parts(folder / "image_rows", ["url"]) for url in table["url"].to_pylist()}


def _hidden(url: str, folder: Path) -> bool:
    number, copy = url.removeprefix("http://host/").removesuffix(".jpg").split("-")
    place = ids(folder).index(int(number))
    return (place < 5 and copy == "0") or 5 <= place < 9


def _urls(service: Running) -> set[str]:
    """Every URL that any endpoint gives for a query that matches everything."""
    body = {"text": "a", "num_images": 1000, "deduplicate": False}
    shown = {entry["url"] for entry in service.client.post("/knn-service", content=json.dumps(body)).json()}
    found = service.client.get("/search", params={"q": "a", "min_similarity": -1, "limit": 1000}).json()["results"]
    assert {row["url"] for result in found for row in result["rows"]} == shown
    return shown


def test_what_another_process_adds_and_removes_is_seen_by_the_next_request(index_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    shutil.copytree(index_folder, folder)
    caption = "a very green star that nobody has described before"
    (tmp_path / "more.csv").write_text(f"caption,url\n{caption},http://added.test/1.png\n")
    statuses: list[int] = []
    with serving(folder) as service, httpx.Client(base_url=service.url, trust_env=False, timeout=60) as asking:
        stopped = threading.Event()

        def keep_asking() -> None:
            while not stopped.is_set():
                statuses.append(asking.get("/search", params={"q": "a star", "limit": 30}).status_code)

        thread = threading.Thread(target=keep_asking)
        thread.start()
        try:
            params = {"q": caption, "min_similarity": 0.99, "limit": 1}
            assert service.client.get("/search", params=params).json()["results"] == []
            cursor = service.client.get("/search", params={"q": "a", "min_similarity": -1}).json()["cursor"]
            assert ran(["index", "add", folder, "--captions", tmp_path / "more.csv"]).code == 0
            [found] = service.client.get("/search", params=params).json()["results"]
            assert (found["caption"], found["rows"][0]["url"]) == (caption, "http://added.test/1.png")
            outdated = service.client.get("/search", params={"q": "a", "min_similarity": -1, "cursor": cursor})
            assert outdated.status_code == 400
            for number in range(3):
                gone = service.client.get("/search", params={"q": f"a star {number}", "limit": 1}).json()["results"]
                remove(folder, captions=[caption, *(result["caption"] for result in gone)])
                assert service.client.get("/search", params=params).json()["results"] == []
        finally:
            stopped.set()
            thread.join(60)
    assert len(statuses) > 3
    assert set(statuses) == {200}


def test_a_cursor_of_many_digits_is_none(service: Running) -> None:
    given = service.client.get("/search", params={"q": "a star", "limit": "1"}).json()["cursor"]
    mark = given.split(".")[1]
    answer = service.client.get("/search", params={"q": "a star", "cursor": f"{'9' * 5000}.{mark}"})
    assert answer.status_code == 400


def test_a_blocklist_hides_pictures_by_their_hash_and_however_their_address_is_spelt(tmp_path: Path) -> None:
    encoder, md5 = HashingEncoder(32), "0123456789abcdef0123456789abcdef"
    pictures = [
        PoolPicture("a red dog", "http://host.test/a.png?x=1&amp;y=2"),
        PoolPicture("a red cat", "http://host.test/b.png", md5.upper()),
        PoolPicture("a red boat", "http://host.test/c.png"),
    ]
    index_of(tmp_path / "index", pictures, encoder)
    (tmp_path / "blocked.txt").write_text(f"{pictures[0].url}\n{md5}\n")
    blocked = read_blocklist(tmp_path / "blocked.txt").exact()
    with Service(open_catalogue([tmp_path / "index"], {}, blocked=blocked, encoder=encoder)).run() as service:
        told = service.client.post("/knn-service", content='{"text": "a red dog"}').json()
    assert [entry["caption"] for entry in told] == ["a red boat"]


@pytest.mark.parametrize(("column", "value"), [("nsfw", " NSFW "), ("nsfw", "porn"), ("punsafe", float("nan"))])
def test_a_rating_that_nobody_understands_is_unsafe(tmp_path: Path, column: str, value: object) -> None:
    encoder = HashingEncoder(32)
    folder = make_index(tmp_path / "words", grammar_captions(6), encoder)
    hidden = [f"http://host/{ids(folder)[0]}-{copy}.jpg" for copy in (0, 1)]
    rate(folder, column, dict.fromkeys(hidden, value))
    with Service(open_catalogue([folder], {}, encoder=encoder)).run() as service:
        assert _urls(service) == _all_urls(folder) - set(hidden)
        told = service.client.post("/metadata", content=json.dumps({"ids": ids(folder)})).json()
    assert [entry["id"] for entry in told] == ids(folder)[1:]
