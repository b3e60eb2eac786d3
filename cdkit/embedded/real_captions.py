"""Captions of photographs for the text tower, e.g. COCO's (CC BY 4.0): five people's words for one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cdkit.embedded.scene_store import CAPTION_TOKENS, token_rows
from cdkit.errors import InputError

CAPTIONS_PER_PHOTO = 5


def real_caption_tokens(path: Path | None) -> np.ndarray:
    """Tokens of a LAION-layout parquet, grouped by URL, uint16 (photos, 5, 40); empty without a path.

    Raises InputError when the file cannot be read or has no URL and TEXT columns.
    """
    if path is None:
        return np.zeros((0, CAPTIONS_PER_PHOTO, CAPTION_TOKENS), dtype=np.uint16)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["URL", "TEXT"])
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a parquet file with URL and TEXT columns: {error}") from error
    photos: dict[str, list[str]] = {}
    for url, text in zip(table["URL"].to_pylist(), table["TEXT"].to_pylist(), strict=True):
        if url and text:
            photos.setdefault(url, []).append(text)
    groups = [texts[:CAPTIONS_PER_PHOTO] for texts in photos.values() if len(texts) >= CAPTIONS_PER_PHOTO]
    tokens = token_rows([text for group in groups for text in group])
    return tokens.reshape(len(groups), CAPTIONS_PER_PHOTO, CAPTION_TOKENS)
