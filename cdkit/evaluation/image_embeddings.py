"""Image embeddings, computed once per picture content and encoder: kept in one SQLite file in cdkit's cache."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from cdkit.errors import InputError
from cdkit.pictures.picture import Picture
from cdkit.protocols import ImageEncoder, Progress
from cdkit.storage import cache_folder

if TYPE_CHECKING:
    from torch import Tensor

CACHE_NAME = "image-embeddings.sqlite"
AT_ONCE = 64
_TABLE = (
    "CREATE TABLE IF NOT EXISTS embeddings"
    " (encoder TEXT, content TEXT, embedding BLOB, PRIMARY KEY (encoder, content)) WITHOUT ROWID"
)


def embed_pictures(
    encoder: ImageEncoder, pictures: Sequence[Picture], progress: Progress, *, label: str = "embedding images"
) -> Tensor:
    """Embeddings float32 [n, dimension] of `pictures`, rows of norm 1; pictures seen before are not opened again.

    Raises InputError that names every picture that cannot be read.
    """
    import torch

    from cdkit.pictures.decoding import RULES

    distinct = {picture.sha256: picture for picture in pictures}
    # What a file looks like is a matter of the rules of decoding, too.
    key = f"{encoder.weights_hash()} {RULES}"
    known = _read(key, list(distinct))
    missing = [picture for content, picture in distinct.items() if content not in known]
    broken: list[str] = []
    with progress.task(label, len(missing), unit="images") as task:
        for start in range(0, len(missing), AT_ONCE):
            batch = missing[start : start + AT_ONCE]
            images = []
            for picture in batch:
                try:
                    images.append((picture.sha256, picture.open()))
                except InputError as error:
                    broken.append(error.message)
            if images:
                rows = encoder.encode_images([image for _, image in images])
                made = {content: row for (content, _), row in zip(images, rows, strict=True)}
                known.update(made)
                _write(key, made)
            task.advance(len(batch))
    if broken:
        shown = [*broken[:5], *([f"and {len(broken) - 5} more"] if len(broken) > 5 else [])]
        raise InputError("\n".join(shown), hint="Draw or copy these again; the scores would be of other images.")
    table = np.stack([known[picture.sha256] for picture in pictures])
    return torch.from_numpy(table)


@contextmanager
def _cache() -> Iterator[sqlite3.Connection | None]:
    """The cache file; None where there can be none: a read-only or full home only costs computing again."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(cache_folder() / CACHE_NAME, timeout=60)
    except (OSError, sqlite3.Error):
        yield None
        return
    with closing(connection):
        try:
            connection.execute(_TABLE)
        except sqlite3.Error:
            yield None
            return
        yield connection


def _read(encoder: str, contents: Sequence[str]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with _cache() as cache:
        if cache is None:
            return found
        for start in range(0, len(contents), 500):
            some = contents[start : start + 500]
            marks = ", ".join("?" * len(some))
            query = f"SELECT content, embedding FROM embeddings WHERE encoder = ? AND content IN ({marks})"
            try:
                rows = cache.execute(query, [encoder, *some]).fetchall()
            except sqlite3.Error:
                return {}
            found.update({content: np.frombuffer(blob, dtype="<f4").copy() for content, blob in rows})
    return found


def _write(encoder: str, rows: Mapping[str, np.ndarray]) -> None:
    values = [(encoder, content, row.astype("<f4").tobytes()) for content, row in rows.items()]
    with _cache() as cache:
        if cache is None:
            return
        try:
            with cache:
                cache.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)", values)
        except sqlite3.Error:
            return
