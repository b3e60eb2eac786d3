"""Indexes whose codes are signs (RaBitQ): built, read by plain FAISS, added to, measured and searched."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from cdkit.core.protocols import Context
from cdkit.core.shards import parts
from cdkit.core.text import caption_id
from cdkit.engines.local import LocalEngine
from cdkit.execute import execute
from cdkit.index.brute_force import Queries
from cdkit.index.caption_index import open_index
from cdkit.index.changes.add import add_captions
from cdkit.index.changes.compact import compact
from cdkit.index.changes.remove import remove
from cdkit.index.clustering import assign_and_encode, tensor_kernels
from cdkit.index.codes import inspect_shards, write_compressed
from cdkit.index.config import IndexConfig
from cdkit.index.embedding_files import embedding_shard
from cdkit.index.faiss_index import encode, has_codebooks, inverted_file, open_faiss, tables_of
from cdkit.index.inverted_lists import IndexLists
from cdkit.index.layout import IndexSettings, choose_layout
from cdkit.index.probing import QUERY_ROUNDING, Probing
from cdkit.index.recall import measure
from cdkit.index.records import read_embeddings
from cdkit.index.search import search
from cdkit.inputs import resolve_inputs
from tests.support import tiny_models
from tests.support.hashing_encoder import HashingEncoder
from tests.support.small_index import grammar_captions, make_index

COUNT, DIMENSION = 10_400, 272
NOBODY = np.empty(0, dtype=np.int64)


def made(count: int, seed: int) -> np.ndarray:
    """Vectors in 200 groups, most of their variance in few directions, normalised."""
    scale = (np.arange(1, DIMENSION + 1) ** -0.4).astype(np.float32)
    centres = np.random.default_rng(0).standard_normal((200, DIMENSION), dtype=np.float32)
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(0, 200, count)] * scale
    vectors = vectors + 0.5 * random.standard_normal((count, DIMENSION), dtype=np.float32) * scale
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signs")
    (folder / "embeddings").mkdir()
    with embedding_shard(folder / "embeddings/part-00000.parquet", DIMENSION, fingerprint="a", facts={}) as writer:
        writer.write(np.arange(COUNT), made(COUNT, 1))
    shards = inspect_shards(parts(folder / "embeddings"))
    layout = choose_layout(COUNT, DIMENSION, 40, exact_below=0)
    assert layout.factory == f"RR256,IVF{layout.lists},RaBitQ"
    write_compressed(folder / "caption.index", layout, shards, NOBODY, IndexSettings(40), Context(LocalEngine(1)))
    assert abs((folder / "caption.index").stat().st_size - layout.index_bytes) < 5000
    return folder


def test_plain_faiss_reads_the_file_and_writes_the_same(folder: Path, tmp_path: Path) -> None:
    plain = faiss.read_index(str(folder / "caption.index"))
    assert (plain.ntotal, plain.d, inverted_file(plain).code_size) == (COUNT, DIMENSION, 40)
    faiss.write_index(plain, str(tmp_path / "again.index"))
    assert (tmp_path / "again.index").read_bytes() == (folder / "caption.index").read_bytes()
    assert not has_codebooks(plain)


def test_estimates_are_what_faiss_searches_by(folder: Path) -> None:
    index = open_faiss(folder / "caption.index", exact=False, nprobe=4)
    query = made(1, 7)
    near = index.within(query[0], -1.0, nprobe=index.lists)
    probing = Probing(index, query, NOBODY, excluded=True)
    estimates, _ = probing.estimates(np.zeros(len(near.ids), np.int64), near.ids)
    assert len(near.ids) == COUNT
    assert np.abs(estimates - near.similarities).max() < 1.5 * QUERY_ROUNDING
    assert np.abs(estimates - near.similarities).mean() < QUERY_ROUNDING / 2


def test_codes_made_by_tensors_are_those_of_faiss(folder: Path) -> None:
    index = faiss.read_index(str(folder / "caption.index"))
    vectors = made(500, 3)
    lists, codes = encode(index, vectors)
    tensor_lists, tensor_codes = assign_and_encode(tables_of(index), torch.from_numpy(vectors), tensor_kernels())
    same = tensor_lists.numpy() == lists
    assert same.mean() > 0.99
    ours, theirs = tensor_codes.numpy()[same], codes[same]
    bits = np.unpackbits(ours[:, :32] ^ theirs[:, :32], axis=1)
    assert bits.mean() < 1e-4
    factors = [np.ascontiguousarray(part[:, 32:]).view("<f4") for part in (ours, theirs)]
    np.testing.assert_allclose(*factors, rtol=1e-4, atol=1e-5)


def test_recall_of_signs_reaches_the_target(folder: Path) -> None:
    index = open_faiss(folder / "caption.index", exact=False, nprobe=1)
    recall = measure(index, parts(folder / "embeddings"), Queries(made(150, 9), NOBODY), threshold=0.75, seed=0)
    assert recall.neighbours > 1000
    assert recall.threshold_recall is not None
    assert recall.threshold_recall >= 0.98
    assert recall.margin < 0.15


def test_captions_are_searched_removed_and_compacted(tmp_path: Path, captions: list[str]) -> None:
    encoder = HashingEncoder(256)
    folder = make_index(tmp_path / "index", captions, encoder, IndexSettings(40, exact_below=0))
    similarities = encoder.encode(captions) @ encoder.encode([captions[5]])[0]
    alike = {caption_id(text) for text, value in zip(captions, similarities, strict=True) if value >= 0.801}
    [result] = search(folder, [captions[5]], min_similarity=0.8, limit=10_000, encoder=encoder)
    found = {match.caption_id for match in result.results}
    assert len(alike & found) >= 0.98 * len(alike) > 10
    remove(folder, captions=captions[:6])
    compact(folder)
    assert open_index(folder, encoder).faiss.count == len(captions) - 6
    [result] = search(folder, [captions[5]], min_similarity=0.8, limit=10_000, encoder=encoder)
    assert {match.caption_id for match in result.results} == found - {caption_id(text) for text in captions[:6]}


def test_what_is_added_is_coded_as_a_build_of_everything_would(tmp_path: Path) -> None:
    texts = grammar_captions(10_300)
    pools = [tmp_path / "first.csv", tmp_path / "more.csv"]
    for pool, part in zip(pools, (texts[:10_000], texts[9_900:]), strict=True):
        pool.write_text("caption\n" + "\n".join(part) + "\n")
    spec = f"open_clip:{tiny_models.open_clip_folder(tmp_path / 'model', embed_dim=256, width=32, heads=2)}"
    given = {"encoder": spec, "bytes_per_caption": 40, "exact_below": 0, "keep_embeddings": True, "device": "cpu"}
    configs = [IndexConfig(captions=[str(pool)], workers=1, threads=1, **given) for pool in pools]
    folder = execute("index", configs[0], tmp_path / "index").out
    assert not has_codebooks(open_faiss(folder / "caption.index", exact=False, nprobe=1).index)
    added = add_captions(folder, configs[1], resolve_inputs(configs[1]), Context(LocalEngine(1)))
    assert added.captions == 300
    grown = open_faiss(folder / "caption.index", exact=False, nprobe=1).index
    ids, vectors = (
        np.concatenate(column) for column in zip(*read_embeddings(parts(folder / "embeddings")), strict=True)
    )
    lists, codes = encode(grown, vectors)
    order = np.lexsort((ids, lists))
    expected = [*lists[order], *ids[order]], codes[order]
    stored = IndexLists(grown, NOBODY)
    stored_ids, stored_codes = stored.block(0, inverted_file(grown).nlist)
    numbers = np.repeat(np.arange(inverted_file(grown).nlist), stored.sizes())
    order = np.lexsort((stored_ids, numbers))
    assert [*numbers[order], *stored_ids[order]] == expected[0]
    assert len(stored_ids) == 10_300
    ours, theirs = stored_codes[order], expected[1]
    assert np.unpackbits(ours[:, :32] ^ theirs[:, :32], axis=1).mean() < 1e-5
    factors = [np.ascontiguousarray(part[:, 32:]).view("<f4") for part in (ours, theirs)]
    np.testing.assert_allclose(*factors, rtol=1e-4, atol=1e-5)
    [found] = search(folder, [texts[10_200]], min_similarity=0.9, limit=5)
    assert (found.results[0].caption, round(found.results[0].similarity, 4)) == (texts[10_200], 1.0)
    remove(folder, captions=[texts[10_200]])
    compact(folder)
    [gone] = search(folder, [texts[10_200]], min_similarity=0.9, limit=5)
    assert texts[10_200] not in [match.caption for match in gone.results]
    assert open_faiss(folder / "caption.index", exact=False, nprobe=1).count == 10_299


def test_sizes_that_vectors_have_no_directions_for_are_product_codes() -> None:
    assert "PQ" in choose_layout(10**6, 128, 40).factory
    assert "PQ64" in choose_layout(10**6, 768, 64).factory
    assert choose_layout(10**6, 512, 40).factory.startswith("RR256,")
    assert choose_layout(10**6, 260).code_bytes == 40
