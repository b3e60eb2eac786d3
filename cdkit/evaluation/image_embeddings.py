"""Image embeddings, computed once per picture content and encoder: kept in one SQLite file in cdkit's cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cdkit.core.cache_file import CacheFile
from cdkit.core.errors import InputError
from cdkit.core.protocols import ImageEncoder, Progress
from cdkit.pictures.picture import Picture

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDINGS = CacheFile("picture-embeddings.sqlite", most=50_000, replaces=("image-embeddings.sqlite",))
AT_ONCE = 64


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
    known = {sha: row for sha, row in _read(key, list(distinct)).items() if row.shape == (encoder.dimension,)}
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


def _keys(encoder: str, contents: Sequence[str]) -> dict[bytes, str]:
    return {hashlib.sha256(f"{encoder} {content}".encode()).digest(): content for content in contents}


def _read(encoder: str, contents: Sequence[str]) -> dict[str, np.ndarray]:
    keys = _keys(encoder, contents)
    return {keys[key]: np.frombuffer(value, dtype="<f4").copy() for key, value in EMBEDDINGS.get(list(keys)).items()}


def _write(encoder: str, rows: Mapping[str, np.ndarray]) -> None:
    keys = _keys(encoder, list(rows))
    EMBEDDINGS.put({key: rows[content].astype("<f4").tobytes() for key, content in keys.items()})
