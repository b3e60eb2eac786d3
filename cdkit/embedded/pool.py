"""A pool of image–caption rows from the embedded world, in the LAION-400M column layout.

Rows are a function of the seed alone. A row's URL holds the scene it shows (`/scene/SEED-SIZE.png`), so that a
PoolServer renders it on demand and no picture is stored. As on the web, captions repeat, ratings are missing here and
there, some pictures are too small and some links are dead (`/gone/...`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cdkit.embedded.grammar import Detail, describe, frame_words, single_words
from cdkit.embedded.world import Scene, generator, scene_from_seed
from cdkit.errors import ConfigError
from cdkit.storage import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_ROWS = 200_000
DEFAULT_HOST = "127.0.0.1:8532"
ROWS_PER_FILE = 50_000
SCENE_SEEDS = 40_000_000
PICTURE_SIZES = (128, 192, 256, 256, 256, 320, 384, 512)
RATINGS = (("UNLIKELY", 0.93), ("UNSURE", 0.05), ("NSFW", 0.01))
REPOST_SHARE = 0.1
DEAD_SHARE = 0.03
CLASS_NAME_SHARE = 0.15


@dataclass(frozen=True)
class PoolRow:
    """One row: the scene's seed, its caption, and what a crawl would have recorded."""

    sample_id: int
    seed: int
    text: str
    size: int
    rating: str | None
    similarity: float
    alive: bool

    def url(self, host: str) -> str:
        """Where a PoolServer at `host` (name or name:port) shows the picture, or a dead link."""
        return f"http://{host}/{'scene' if self.alive else 'gone'}/{self.seed}-{self.size}.png"


def pool_rows(count: int = DEFAULT_ROWS, seed: int = 0) -> Iterator[PoolRow]:
    """The rows of a pool, in order; a tenth of them repeat an earlier row's picture and caption under another size."""
    rng = generator(SCENE_SEEDS + seed)
    recent: list[PoolRow] = []
    for index in range(count):
        if recent and rng.random() < REPOST_SHARE:
            earlier = recent[int(rng.integers(len(recent)))]
            scene_seed, text = earlier.seed, earlier.text
        else:
            scene_seed = SCENE_SEEDS + int(rng.integers(1 << 40))
            text = pool_caption(scene_from_seed(scene_seed), rng)
        row = PoolRow(
            sample_id=seed * 1_000_000_000 + index,
            seed=scene_seed,
            text=text,
            size=PICTURE_SIZES[int(rng.integers(len(PICTURE_SIZES)))],
            rating=rating(float(rng.random())),
            similarity=round(0.28 + 0.1 * float(rng.random()), 4),
            alive=bool(rng.random() >= DEAD_SHARE),
        )
        if len(recent) < 1000:
            recent.append(row)
        else:
            recent[int(rng.integers(1000))] = row
        yield row


def pool_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of the scene; one object is named by its bare class more often than in training, as in alt-text."""
    if len(scene.things) == 1 and rng.random() < CLASS_NAME_SHARE:
        words = single_words(scene.things[0], Detail(look=False), "", rng)
        return frame_words(words, scene.background if rng.random() < 0.3 else "", rng)
    return describe(scene, rng).text


def rating(roll: float) -> str | None:
    """A rating, or None for an unrated row."""
    for word, share in RATINGS:
        roll -= share
        if roll < 0:
            return word
    return None


def pool_table(rows: list[PoolRow], host: str) -> pa.Table:
    """Rows as a table with the LAION-400M columns."""
    import pyarrow as pa

    return pa.table(
        {
            "SAMPLE_ID": pa.array([row.sample_id for row in rows], pa.int64()),
            "URL": pa.array([row.url(host) for row in rows], pa.string()),
            "TEXT": pa.array([row.text for row in rows], pa.string()),
            "HEIGHT": pa.array([row.size for row in rows], pa.int64()),
            "WIDTH": pa.array([row.size for row in rows], pa.int64()),
            "LICENSE": pa.array(["?" for _ in rows], pa.string()),
            "NSFW": pa.array([row.rating for row in rows], pa.string()),
            "similarity": pa.array([row.similarity for row in rows], pa.float64()),
        }
    )


def write_pool(folder: Path, *, rows: int = DEFAULT_ROWS, seed: int = 0, host: str = DEFAULT_HOST) -> list[Path]:
    """Writes parquet files of 50,000 rows each; returns their paths. `host` is where a PoolServer will listen."""
    import pyarrow.parquet as pq

    if rows < 1:
        raise ConfigError(f"A pool needs at least one row, not {rows}.")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    source = pool_rows(rows, seed)
    for part in range((rows + ROWS_PER_FILE - 1) // ROWS_PER_FILE):
        wanted = min(ROWS_PER_FILE, rows - part * ROWS_PER_FILE)
        path = folder / f"pool-{part:05d}.parquet"
        with atomic_path(path) as temporary:
            pq.write_table(pool_table([next(source) for _ in range(wanted)], host), temporary, compression="zstd")
        paths.append(path)
    return paths
