"""k-means, rotations and codes as matrix products."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cdkit.index.clustering import (
    _sorted_sums,
    assign_and_encode,
    decode,
    group_sums,
    learn_tables,
    nearest,
    principal_directions,
    rotate,
    spherical_k_means,
    tensor_kernels,
    train_codebooks,
)
from cdkit.index.clustering import encode as encode_parts
from cdkit.index.faiss_index import assemble, encode, faiss_kernels, tables_of
from cdkit.index.layout import compressed_layout


def _clustered(count: int, dimension: int, clusters: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(clusters, dimension, generator=random), dim=1)
    labels = torch.randint(clusters, (count,), generator=random)
    noise = spread * torch.randn(count, dimension, generator=random) / dimension**0.5
    return torch.nn.functional.normalize(centres[labels] + noise, dim=1), centres


def test_k_means_finds_the_centres_of_clusters() -> None:
    points, centres = _clustered(4000, 16, 8, 0.2)
    centroids = spherical_k_means(points, 32, nearest)
    assert torch.allclose(centroids.norm(dim=1), torch.ones(32), atol=1e-5)
    assert ((centres @ centroids.T).max(dim=1).values > 0.98).all()


def test_no_centroid_stays_empty_when_points_repeat() -> None:
    points = torch.eye(4).repeat(100, 1)
    centroids = spherical_k_means(points, 8, nearest)
    assert (group_sums(points, nearest(points, centroids), 8)[1] > 0).sum() >= 4
    assert torch.allclose(centroids.norm(dim=1), torch.ones(8), atol=1e-5)
    assert ((points[:4] @ centroids.T).max(dim=1).values > 0.99).all()


def test_group_sums_are_sums_by_label() -> None:
    points = torch.arange(12.0).reshape(6, 2)
    sums, sizes = group_sums(points, torch.tensor([2, 0, 2, 3, 0, 2]), 4)
    assert sizes.tolist() == [2, 0, 3, 1]
    assert sums.tolist() == [[10.0, 12.0], [0.0, 0.0], [14.0, 17.0], [6.0, 7.0]]


def test_sums_of_sorted_blocks_are_those_by_index() -> None:
    points, _ = _clustered(200_000, 8, 5, 1.0)
    labels = (points[:, 0] * 1000).long() % 97
    assert torch.allclose(_sorted_sums(points, labels, 97), group_sums(points, labels, 97)[0], atol=1e-2)


def test_codes_are_the_nearest_entries() -> None:
    points, _ = _clustered(600, 8, 20, 1.0)
    codebooks = train_codebooks(points, 4, encode_parts, rounds=4)
    codes = encode_parts(points, codebooks)
    distances = torch.cdist(points.reshape(-1, 4, 2).transpose(0, 1), codebooks)
    assert torch.equal(codes.long(), distances.argmin(dim=2).T)
    rough = train_codebooks(points, 4, encode_parts, rounds=1)
    error = (decode(codes, codebooks) - points).square().mean()
    assert error < (decode(encode_parts(points, rough), rough) - points).square().mean()


@pytest.mark.parametrize("number", [torch.float32, torch.float16])
def test_tables_keep_similarities_and_are_the_same_each_time(number: torch.dtype) -> None:
    points, _ = _clustered(1200, 16, 40, 0.6)

    def learn() -> tuple[torch.Tensor, ...]:
        tables = learn_tables(points.to(number), reduced=16, code_bytes=8, lists=16, seed=3, kernels=tensor_kernels())
        lists, codes = assign_and_encode(tables, points, tensor_kernels())
        return tables.rotation, tables.centroids, tables.codebooks, lists, codes

    first, second = learn(), learn()
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    rotation, centroids, codebooks, lists, codes = first
    assert torch.allclose(rotation @ rotation.T, torch.eye(16), atol=1e-4)
    estimates = rotate(points[:50], rotation) @ (centroids[lists] + decode(codes, codebooks)).T
    assert (estimates - points[:50] @ points.T).abs().mean() < 0.02


def test_the_principal_directions_keep_inner_products_and_order() -> None:
    random = np.random.default_rng(0)
    flat = random.standard_normal((500, 6)) @ random.standard_normal((6, 24)) + 0.01 * random.standard_normal(
        (500, 24)
    )
    basis = principal_directions(torch.from_numpy(flat).float(), 6).numpy()
    np.testing.assert_allclose(basis @ basis.T, np.eye(6), atol=1e-5)
    projected = flat @ basis.T
    np.testing.assert_allclose(projected @ projected.T, flat @ flat.T, atol=0.5)
    energy = (projected**2).sum(axis=0)
    assert np.all(np.diff(energy) < 0)


def test_both_sets_of_inner_loops_agree() -> None:
    points, _ = _clustered(500, 16, 20, 1.0)
    codebooks = train_codebooks(points, 8, encode_parts, rounds=2)
    assert torch.equal(faiss_kernels().nearest(points, points[:50]), nearest(points, points[:50]))
    assert (faiss_kernels().encode(points, codebooks) == encode_parts(points, codebooks)).float().mean() > 0.999


def test_an_index_of_faiss_codes_as_its_tables_do() -> None:
    points, _ = _clustered(1000, 16, 20, 1.0)
    layout = compressed_layout(1000, 16, 8, lists=16)
    tables = learn_tables(points, reduced=16, code_bytes=8, lists=16, seed=0, kernels=faiss_kernels())
    index = assemble(layout, tables)
    for table, stored in zip(vars(tables).values(), vars(tables_of(index)).values(), strict=True):
        assert torch.equal(table, stored)
    lists, codes = assign_and_encode(tables, points, tensor_kernels())
    faiss_lists, faiss_codes = encode(index, points.numpy())
    same = lists.numpy() == faiss_lists
    assert same.mean() > 0.95
    assert (codes.numpy()[same] == faiss_codes[same]).mean() > 0.999
