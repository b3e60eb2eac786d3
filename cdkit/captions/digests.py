"""Digests: the caption ids of a batch of rows, most of them hashed in SQL and the rest cleaned here."""

from __future__ import annotations

import binascii
from functools import lru_cache
from typing import TYPE_CHECKING

from cdkit.text import clean_caption, digest_halves

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def digests_of(digest: pa.Array, caption: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Caption ids and checks, int64, and whether the cleaned caption is blank.

    `digest` is the sha256 in hex where SQL cleaned the caption; Python cleans those that have a caption and no digest.
    """
    import numpy as np
    import pyarrow.compute as pc

    rows = len(digest)
    ids, checks, blank = np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.zeros(rows, bool)
    in_sql = np.asarray(digest.is_valid())
    ids[in_sql], checks[in_sql] = _halves_of_hex(digest)
    left = np.flatnonzero(~in_sql & np.asarray(caption.is_valid()))
    for position, text in zip(left.tolist(), caption.filter(pc.is_null(digest)).drop_null().to_pylist(), strict=True):
        halves = _cleaned_halves(text)
        if halves is None:
            blank[position] = True
        else:
            ids[position], checks[position] = halves
    return ids, checks, blank


@lru_cache(maxsize=1 << 16)
def _cleaned_halves(text: str) -> tuple[int, int] | None:
    cleaned = clean_caption(text)
    return digest_halves(cleaned) if cleaned else None


def _halves_of_hex(digest: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The first two 8-byte halves, & 2⁶³−1, of the sha256 values that are not null."""
    import numpy as np

    present = digest.drop_null()
    if not len(present):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    offsets = np.frombuffer(present.buffers()[1], np.int32)[present.offset : present.offset + len(present) + 1]
    raw = binascii.unhexlify(memoryview(present.buffers()[2])[offsets[0] : offsets[-1]])
    words = np.frombuffer(raw, ">u8").reshape(-1, 4)[:, :2] & np.uint64((1 << 63) - 1)
    return words[:, 0].astype(np.int64), words[:, 1].astype(np.int64)
