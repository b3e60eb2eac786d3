"""The caption pool: the LAION layout, the same rows every time, enough captions per class, pictures over loopback."""

from __future__ import annotations

import io
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cdkit import embedded
from cdkit.captions.config import ImportConfig
from cdkit.core.errors import ConfigError, OutputError
from cdkit.embedded import PoolServer, write_pool
from cdkit.embedded.pool import DEFAULT_ROWS, pool_rows
from cdkit.embedded.rendering import render
from cdkit.embedded.world import SHAPES, scene_from_seed
from cdkit.inputs import resolve_inputs

LAION_COLUMNS = ["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"]


def fetch(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as response:
        content: bytes = response.read()
    return content


def test_rows_come_in_the_laion_layout(tmp_path: Path) -> None:
    first = write_pool(tmp_path / "one", rows=3000, host="127.0.0.1:9")
    table = pq.read_table(first[0])
    assert table.column_names == LAION_COLUMNS
    assert table.num_rows == 3000
    assert len(set(table["SAMPLE_ID"].to_pylist())) == 3000
    ratings = Counter(table["NSFW"].to_pylist())
    assert set(ratings) == {"UNLIKELY", "UNSURE", "NSFW", None}
    assert ratings["UNLIKELY"] > 2700
    assert 0.005 < sum("/gone/" in url for url in table["URL"].to_pylist()) / 3000 < 0.06
    assert len(set(table["TEXT"].to_pylist())) < 2900
    again = write_pool(tmp_path / "two", rows=3000, host="127.0.0.1:9")
    assert first[0].read_bytes() == again[0].read_bytes()


def test_a_longer_pool_starts_with_the_same_rows() -> None:
    assert list(pool_rows(50)) == list(islice(pool_rows(80), 50))
    assert list(pool_rows(50)) != list(pool_rows(50, seed=1))
    assert DEFAULT_ROWS >= 200_000


def test_a_pool_needs_rows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        write_pool(tmp_path, rows=0)


def test_every_class_has_many_captions_that_name_nothing_else() -> None:
    rows = list(pool_rows(20_000))
    bare = {shape: {row.text for row in rows if bare_class(row.text, shape)} for shape in SHAPES}
    # 20,000 rows are a tenth of the pool; a regularization set takes 200 distinct captions.
    assert all(len(texts) >= 60 for texts in bare.values()), {shape: len(texts) for shape, texts in bare.items()}


def bare_class(text: str, shape: str) -> bool:
    from cdkit.embedded.grammar import SHAPE_WORDS
    from cdkit.embedded.world import COLOURS

    if " and " in text or not any(word in text for word in SHAPE_WORDS[shape]):
        return False
    return not any(word in text for word in (*COLOURS, "violet", "golden", "night", "sea", "grass", "gray", "grey"))


def test_the_server_shows_the_picture_a_url_names() -> None:
    row = next(row for row in pool_rows(100) if row.alive)
    with PoolServer() as server:
        content = fetch(row.url(server.host))
        picture = Image.open(io.BytesIO(content))
        assert picture.size == (row.size, row.size)
        small = np.asarray(picture.convert("RGB").resize((32, 32), Image.Resampling.BOX)).astype(int)
        assert np.abs(small - render(scene_from_seed(row.seed))).max() <= 1
        jpeg = fetch(f"http://{server.host}/scene/5-256.jpg")
        assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
        for missing in ("/gone/5-256.png", "/scene/5-9999.png", "/scene/5-8.png", "/scene/../5-256.png", "/"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                fetch(f"http://{server.host}{missing}")
            assert caught.value.code == 404
            caught.value.close()


def test_a_taken_port_is_an_error() -> None:
    with PoolServer() as server, pytest.raises(OutputError, match="cannot be used"):
        PoolServer(int(server.host.partition(":")[2]))


def test_two_first_runs_at_once_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDKIT_CACHE", str(tmp_path))
    made = []

    def slowly(folder: Path) -> list[Path]:
        made.append(folder)
        time.sleep(0.3)
        return write_pool(folder, rows=10)

    monkeypatch.setattr(embedded, "write_pool", slowly)
    config = ImportConfig(captions=["embedded"])
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: resolve_inputs(config)["captions"].fingerprint, range(2)))
    assert len(made) == 1
    assert found[0] == found[1]
