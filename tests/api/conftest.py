"""One small piece of work through the functions: an index, two concepts, their merge, samples and scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

import cdkit
from cdkit.api.results import DeltaFolder, IndexFolder, SampleFolder, ScoreFolder, SetFolder
from cdkit.embedded import concept_photos, write_pool


@dataclass(frozen=True)
class Work:
    index: IndexFolder
    set: SetFolder
    star: DeltaFolder
    merged: DeltaFolder
    samples: SampleFolder
    scores: ScoreFolder


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Work:
    folder: Path = tmp_path_factory.mktemp("work")
    write_pool(folder / "pool", rows=600)
    index = cdkit.build_index(folder / "pool", out=folder / "index")
    star = cdkit.train({"star": concept_photos("striped-star")}, steps=1, out=folder / "star")
    heart = cdkit.train({"heart": "embedded:checkered-heart"}, steps=1, out=folder / "heart")
    merged = cdkit.merge([star, heart], index=index, captions_count=60, out=folder / "merged")
    samples = cdkit.sample(merged, prompts=["a <new1> star", "a <b>bold</b> heart"], seeds=2, steps=1)
    return Work(
        index,
        cdkit.retrieve(index, "a photo of a star", images="embedded", count=6, min_similarity=0.6, out=folder / "set"),
        star,
        merged,
        samples,
        cdkit.evaluate(samples, concepts={"star": concept_photos("striped-star")}, resamples=100),
    )
