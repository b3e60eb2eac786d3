"""The nearest of many centroids, found through groups of them: a CPU's way, as matrix products.

Comparing every point with every centroid makes an index of n captions cost n times its lists. Here the centroids are
themselves clustered, and a point is compared with those in its nearest groups alone: with about √lists groups, that
costs √lists. The nearest is missed for a few points in a hundred, whose list is then nearly as near.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from cdkit.index.clustering import nearest, spherical_k_means

if TYPE_CHECKING:
    from torch import Tensor

# Up to so many centroids, comparing with all of them is as fast.
MOST_COMPARED = 1024
GROUPS_SEARCHED = 8
ROWS_PER_BLOCK = 8192


def compared(lists: int) -> int:
    """With how many centroids of `lists` a point is compared."""
    groups = _group_count(lists)
    return lists if lists <= MOST_COMPARED else groups + GROUPS_SEARCHED * lists // groups


def _group_count(lists: int) -> int:
    return 1 << round(math.log2(lists) / 2)


@dataclass(frozen=True)
class GroupedCentroids:
    """Centroids float32 [lists, d] in the order of their groups; numbers: what they are called, int64 [lists].

    heads: the groups' own centroids [groups, d]; starts: where each group begins, and the end.
    """

    heads: Tensor
    members: Tensor
    numbers: Tensor
    starts: list[int]

    @classmethod
    def of(cls, centroids: Tensor) -> GroupedCentroids:
        import torch

        count = _group_count(len(centroids))
        heads = spherical_k_means(centroids, count, nearest)
        groups = nearest(centroids, heads)
        order = torch.argsort(groups, stable=True)
        sizes = torch.bincount(groups, minlength=count)
        return cls(heads, centroids[order], order, [0, *sizes.cumsum(0).tolist()])

    def nearest(self, points: Tensor) -> Tensor:
        """int64 [n]: the number of the nearest centroid in the nearest groups of each point [n, d]."""
        import torch

        labels = torch.empty(len(points), dtype=torch.int64)
        for start in range(0, len(points), ROWS_PER_BLOCK):
            rows = slice(start, start + ROWS_PER_BLOCK)
            labels[rows] = self._block(points[rows].float())
        return labels

    def _block(self, points: Tensor) -> Tensor:
        import torch

        searched = min(GROUPS_SEARCHED, len(self.heads))
        asked = (points @ self.heads.T).topk(searched, dim=1).indices.ravel()
        order = torch.argsort(asked, stable=True)
        ends = [0, *torch.bincount(asked, minlength=len(self.heads)).cumsum(0).tolist()]
        # A group's rows lie together: what is found of them is put back in the order of the points at the end.
        best, places = torch.empty(len(asked)), torch.zeros(len(asked), dtype=torch.int64)
        rows = order // searched
        for group, (first, last) in enumerate(pairwise(self.starts)):
            part = slice(ends[group], ends[group + 1])
            if first == last:
                best[part] = -torch.inf
                continue
            similarities = points.index_select(0, rows[part]) @ self.members[first:last].T
            # NumPy's is several times as fast.
            greatest = torch.from_numpy(similarities.numpy().argmax(axis=1))
            best[part] = similarities.gather(1, greatest[:, None])[:, 0]
            places[part] = greatest + first
        back = torch.argsort(order)
        chosen = best[back].view(-1, searched).argmax(dim=1)
        return self.numbers[places[back].view(-1, searched).gather(1, chosen[:, None])[:, 0]]
