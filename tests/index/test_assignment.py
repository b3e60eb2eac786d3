"""The nearest centroid through groups of centroids, beside comparing with all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cdkit.index import assignment
from cdkit.index.assignment import MOST_COMPARED, GroupedCentroids, compared
from cdkit.index.clustering import Tables, nearest
from cdkit.index.faiss_index import assemble, encode, faiss_kernels, grouped_lists
from cdkit.index.layout import compressed_layout

LISTS = 2048


@pytest.fixture(scope="module")
def points() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(60, 24, generator=random)
    noisy = centres[torch.randint(60, (6000,), generator=random)] + 0.8 * torch.randn(6000, 24, generator=random)
    return torch.nn.functional.normalize(noisy, dim=1)


def test_nearly_all_points_find_their_nearest_and_the_others_one_nearly_as_near(points: torch.Tensor) -> None:
    centroids, asked = points[:LISTS], points[LISTS:]
    expected, found = nearest(asked, centroids), GroupedCentroids.of(centroids).nearest(asked)
    assert (found == expected).float().mean() > 0.9
    lost = ((asked * centroids[expected]).sum(dim=1) - (asked * centroids[found]).sum(dim=1)).mean()
    assert 0 <= lost < 2e-3


def test_all_groups_give_the_nearest_itself(points: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "GROUPS_SEARCHED", LISTS)
    monkeypatch.setattr(assignment, "ROWS_PER_BLOCK", 700)
    centroids, asked = points[:LISTS], points[LISTS:]
    similarities = asked @ centroids.T
    found = GroupedCentroids.of(centroids).nearest(asked)
    torch.testing.assert_close(
        similarities.gather(1, found[:, None])[:, 0], similarities.max(dim=1).values, rtol=0, atol=1e-6
    )


def test_centroids_that_repeat_leave_groups_empty(points: torch.Tensor) -> None:
    centroids = points[:40].repeat(60, 1)
    found = GroupedCentroids.of(centroids).nearest(points[:40])
    torch.testing.assert_close(centroids[found], points[:40], rtol=0, atol=0)


def test_what_a_point_is_compared_with_grows_with_the_root_of_the_lists() -> None:
    assert compared(MOST_COMPARED) == MOST_COMPARED
    assert compared(16_384) == 128 + 8 * 128
    assert compared(1 << 18) < 6 * compared(1 << 14)


def test_an_index_of_many_lists_is_learned_and_filled_through_groups(points: torch.Tensor) -> None:
    layout = compressed_layout(len(points), 24, 12, lists=LISTS)
    random = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(24, 24, generator=random))[0]
    codebooks = torch.randn(12, 256, 2, generator=random) / 10
    index = assemble(layout, Tables(turn, points[:LISTS] @ turn.T, codebooks))
    grouped = grouped_lists(index)
    assert grouped is not None
    lists, codes = encode(index, points.numpy(), grouped)
    every_list, every_code = encode(index, points.numpy())
    same = lists == every_list
    assert same.mean() > 0.9
    assert np.array_equal(codes[same], every_code[same])
    rotated = points @ turn.T
    assert torch.equal(faiss_kernels().nearest(rotated, points[:LISTS] @ turn.T), torch.from_numpy(lists))
