"""Embeddings of pictures by an image encoder, kept by content in one SQLite file of the cache; how near they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cdkit.core.errors import InputError
from cdkit.core.fingerprints import CacheFile
from cdkit.core.protocols import ImageEncoder, Progress
from cdkit.pictures.picture import Picture

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

EMBEDDINGS = CacheFile("picture-embeddings.sqlite", most=50_000, replaces=("image-embeddings.sqlite",))
AT_ONCE = 64
# Batches of one size go through the same kernels, which treat every row alike; a CPU gains nothing by larger ones.
ALONE_AT_ONCE = 8


def embed_pictures(
    encoder: ImageEncoder,
    pictures: Sequence[Picture],
    progress: Progress,
    *,
    label: str,
    hint: str,
    alone: bool = False,
) -> np.ndarray:
    """float32 [n, dimension] of `pictures`, rows of norm 1; pictures seen before are not opened again.

    alone: a picture's embedding is the same to the last bit whichever pictures are embedded with it, for decisions
    that must not depend on them. Raises InputError with `hint` that names every picture that cannot be read.
    """
    import numpy as np

    from cdkit.pictures.decoding import RULES

    distinct = {picture.sha256: picture for picture in pictures}
    # What a file looks like is a matter of the rules of decoding, too.
    key = f"{encoder.weights_hash()} {RULES}{f' {ALONE_AT_ONCE}' if alone else ''}"
    at_once = ALONE_AT_ONCE if alone else AT_ONCE
    rows = {sha: row for sha, row in _read(key, list(distinct)).items() if row.shape == (encoder.dimension,)}
    missing = [picture for content, picture in distinct.items() if content not in rows]
    broken: list[str] = []
    with progress.task(label, len(missing), unit="images") as task:
        for start in range(0, len(missing), at_once):
            batch = missing[start : start + at_once]
            images = {}
            for picture in batch:
                try:
                    images[picture.sha256] = picture.open()
                except InputError as error:
                    broken.append(error.message)
            if images:
                filled = list(images.values()) + [next(iter(images.values()))] * (
                    at_once - len(images) if alone else 0
                )
                made = dict(zip(images, encoder.encode_images(filled), strict=False))
                rows |= made
                _write(key, made)
            task.advance(len(batch))
    if broken:
        raise InputError("\n".join([*broken[:5], *_more(broken)]), hint=hint)
    if not pictures:
        return np.zeros((0, encoder.dimension), dtype=np.float32)
    return np.stack([rows[picture.sha256] for picture in pictures])


def _more(broken: Sequence[str]) -> list[str]:
    return [f"and {len(broken) - 5} more"] if len(broken) > 5 else []


def _keys(encoder: str, contents: Sequence[str]) -> dict[bytes, str]:
    return {hashlib.sha256(f"{encoder} {content}".encode()).digest(): content for content in contents}


def _read(encoder: str, contents: Sequence[str]) -> dict[str, np.ndarray]:
    import numpy as np

    keys = _keys(encoder, contents)
    return {keys[key]: np.frombuffer(value, dtype="<f4").copy() for key, value in EMBEDDINGS.get(list(keys)).items()}


def _write(encoder: str, rows: Mapping[str, np.ndarray]) -> None:
    keys = _keys(encoder, list(rows))
    EMBEDDINGS.put({key: rows[content].astype("<f4").tobytes() for key, content in keys.items()})


def nearest_photo(images: Tensor, photos: Tensor) -> Tensor:
    """Cosine of each image with the photo it is most like: [n, d] and [m, d] of norm 1, to [n]; near 1 is a copy."""
    return (images.double() @ photos.double().T).max(dim=1).values
