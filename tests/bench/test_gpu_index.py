"""The GPU benchmark of index building, at its tiny size on this machine."""

from __future__ import annotations

from tests.bench.gpu.index import measure


def test_every_figure_comes_at_the_tiny_size() -> None:
    figures = dict(measure(tiny=True, seconds=60))
    assert list(figures) == ["vectors", "learning", "adding", "recall", "full_size"]
    recall = figures["recall"]["threshold_recall"]
    assert recall["4"] <= recall["64"] > 0.98
    assert figures["learning"]["seconds"].keys() == {"sample", "rotation", "k-means", "codebooks"}
    assert figures["full_size"]["extrapolated_seconds"].keys() == {"k_means", "adding"}
