"""The shipped pipelines on real captions and real photos, over a web that fails as the real one does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdkit.core.formatting import json_text
from tests.cli.running import ran
from tests.real.checks import (
    check_delta,
    check_images,
    check_index,
    check_lora,
    check_page,
    check_scores,
    check_set,
    manifest_of,
)
from tests.real.real_web import DREAMBOOTH, RealWeb, pairs_of, photos_of
from tests.support import material
from tests.support.hostile_server import HostileServer

pytestmark = pytest.mark.real
ROWS, IMAGES = 5000, 200


@pytest.fixture
def web() -> Iterator[RealWeb]:
    with HostileServer() as server:
        yield RealWeb(server)


def run(pipeline: str, out: Path, web: RealWeb, sets: list[str], **settings: Any) -> dict[str, float]:
    """Run a shipped pipeline on the embedded model; the seconds of every stage."""
    chosen: dict[str, Any] = {"base": "embedded", "images": "null", "count": IMAGES, **settings}
    for step in sets:
        chosen |= {f"{step}.allow_host": f"[{web.server.place}]", f"{step}.deadline": 3, f"{step}.retries": 0}
        # The embedded CLIP knows few of the words that people use: nothing is as alike as its own threshold asks.
        chosen[f"{step}.min_similarity"] = 0.3
    words = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
    done = ran(["run", pipeline, *words, "--out", out, "--format", "json"])
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    return {stage["name"]: stage["seconds"] for stage in done.data["stages"]}


def test_one_concept_on_real_input(tmp_path: Path, web: RealWeb) -> None:
    pool = web.first_captions(tmp_path / "pool.parquet", ROWS)
    out = tmp_path / "run"
    settings = {"category": "dog", "photos": material.path(f"{DREAMBOOTH}/dog"), "captions": pool}
    short = {"steps": 20, "tuned.batch_size": 4, "seeds": 2, "sampling_steps": 4}
    run("one-concept", out, web, ["regularization"], **settings, **short)
    check_index(out / "new-index", ROWS)
    own = [photo.path for photo in photos_of("dog")]
    check_set(out / "regularization", web, pairs_of(pool), own, IMAGES)
    assert len((out / "tuned" / "metrics.csv").read_text().splitlines()) >= 20
    check_delta(out / "tuned")
    check_images(out / "before", 10)
    check_images(out / "after", 20)
    check_scores(out / "scores")
    check_lora(out / "lora")
    check_page(out)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_two_concepts_on_all_real_captions(tmp_path: Path, web: RealWeb) -> None:
    """All ten caption tables; the figures are printed as one JSON line."""
    clock = time.monotonic()
    files = material.caption_files()
    pool = web.with_links(files, tmp_path / "pool")
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    out = tmp_path / "run"
    concepts = {
        key: value
        for place, word in (("first", "dog"), ("second", "vase"))
        for key, value in ((place, word), (f"{place}_photos", material.path(f"{DREAMBOOTH}/{word}")))
    }
    sets = ["first-set", "second-set"]
    picks = {"picks.sample": 200_000, "picks.min_count": 5, "picks.max_count": 10}
    seconds = run("two-concepts-merged", out, web, sets, captions=pool, **concepts, **picks)
    check_index(out / "new-index", rows)
    pairs = pairs_of(pool)
    for name, word in zip(sets, ("dog", "vase"), strict=True):
        check_set(out / name, web, pairs, [photo.path for photo in photos_of(word)], IMAGES)
    found = manifest_of(out / "picks")["details"]["picks"]
    assert all(5 <= pick["count"] <= 10 for pick in found)
    for name in ("first-tuned", "second-tuned", "tuned"):
        check_delta(out / name)
    scores = {name: check_scores(out / f"{name}-scores") for name in ("first", "second")}
    check_lora(out / "lora")
    check_page(out)
    figures = {
        "rows": rows,
        "captions": manifest_of(out / "new-index")["details"]["captions"],
        "rejected_rows": manifest_of(out / "new-index")["counts"]["rejected"],
        "sets": {name: _figures_of_set(out / name) for name in sets},
        "picks": [pick["token"] for pick in found],
        "final_loss": {
            name: manifest_of(out / name)["details"]["final_loss"] for name in ("first-tuned", "second-tuned")
        },
        "merge": {key: manifest_of(out / "tuned")["details"][key] for key in ("constraint_residual", "drift")},
        "scores": scores,
        "seconds": {"all": round(time.monotonic() - clock, 1), **seconds},
    }
    print(f"\n{json_text(figures)}")


def _figures_of_set(folder: Path) -> dict[str, Any]:
    details = manifest_of(folder)["details"]
    return {key: details[key] for key in ("accepted", "tried", "rejected")}
