"""`cdkit index search --format json` against brute force: the same answer where the index is exact, the manifest's
recall where it is compressed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdkit.cli.app import execute_command
from cdkit.encoders import load_text_encoder
from tests.index.kill_campaign import QUERIES, campaign
from tests.support import material
from tests.support.small_index import grammar_captions

DIGITS = 2e-6


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert execute_command([*words, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def built(capsys: pytest.CaptureFixture[str], folder: Path, captions: list[str], *further: str) -> Path:
    pq.write_table(pa.table({"caption": captions}), folder / "pool.parquet")
    out = folder / "index"
    words = ("--captions", str(folder / "pool.parquet"), "--encoder", "embedded", "--out", str(out))
    run(capsys, "index", "build", *words, *further)
    return out


def brute_force(index: Path, query: str, least: float) -> dict[str, float]:
    """Caption to fp32 similarity, every caption of the index encoded again."""
    encoder = load_text_encoder("embedded", device="cpu")
    captions = [text for path in sorted((index / "captions").glob("*.parquet"))
                for text in pq.read_table(path)["caption"].to_pylist()]  # fmt: skip
    similarities = encoder.encode(captions) @ encoder.encode([query])[0]
    return {text: float(value) for text, value in zip(captions, similarities, strict=True) if value >= least}


def test_a_flat_index_answers_as_brute_force(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    index = built(capsys, tmp_path, grammar_captions(400))
    query = "a photo of a small red star"
    truth = brute_force(index, query, -1.0)
    least = float(np.quantile(list(truth.values()), 0.8))
    expected = {text: value for text, value in truth.items() if value >= least}
    found = run(capsys, "index", "search", str(index), query, "--min-similarity", str(least), "--limit", "1000")
    assert {row["caption"] for row in found["results"]} == set(expected)
    assert all(row["similarity"] == pytest.approx(expected[row["caption"]], abs=DIGITS) for row in found["results"])
    order = [row["similarity"] for row in found["results"]]
    assert order == sorted(order, reverse=True)
    assert found["more"] is False
    first = run(capsys, "index", "search", str(index), query, "--min-similarity", str(least), "--limit", "7")
    assert first["results"] == found["results"][:7]
    assert first["more"] is True


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_compressed_index_has_the_recall_of_its_manifest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = ("cc3m_validation", "coco_val2017_captions")
    rows = [pq.read_table(material.path(f"captions/{name}.parquet"))["TEXT"].to_pylist() for name in names]
    captions = [text for table in rows for text in table if text]
    settings = ("--exact-below", "0", "--bytes-per-caption", "16", "--keep-embeddings")
    index = built(capsys, tmp_path, captions, *settings)
    manifest = run(capsys, "index", "info", str(index))
    recall = manifest["details"]["recall"]
    assert "PQ" in manifest["details"]["index"]["factory"]
    assert recall["threshold_recall"] >= 0.98
    least = manifest["details"]["encoder"]["default_threshold"]
    found = expected = 0
    for query in QUERIES:
        truth = brute_force(index, query, least)
        answer = run(capsys, "index", "search", str(index), query, "--limit", "100000", "--encode-limit", "100000")
        similarities = {row["caption"]: row["similarity"] for row in answer["results"]}
        assert set(similarities) <= set(truth)
        assert all(value == pytest.approx(truth[text], abs=DIGITS) for text, value in similarities.items())
        found += len(similarities)
        expected += len(truth)
    assert expected > 50
    assert found >= (recall["threshold_recall"] - 0.01) * expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_build_killed_at_random_moments_repeats_nothing_finished(tmp_path: Path) -> None:
    files = [material.path(f"captions/{name}.parquet") for name in ("coco_val2017_captions", "cc3m_validation")]
    facts = campaign(
        files, tmp_path, kills=4, longest=5, seed=1, further=["--exact-below", "0", "--bytes-per-caption", "16"]
    )
    assert facts["kills"] == 4
    assert facts["shards_made_again"] == facts["blocks_made_again"] == 0
    assert all(value for key, value in facts.items() if key.startswith("same_"))
