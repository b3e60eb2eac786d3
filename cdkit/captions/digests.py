"""Caption ids of a batch of rows: from the digests that SQL made, or cleaned and hashed here."""

from __future__ import annotations

import binascii
from functools import lru_cache
from typing import TYPE_CHECKING

from cdkit.core.text import clean_caption, digest_halves

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def digests_of(digest: pa.Array, caption: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Caption ids and checks, int64, and whether the cleaned caption is blank.

    `digest` is the sha256 in hex where SQL cleaned the caption; Python cleans those that have a caption and no digest,
    and those with control characters.
    """
    import numpy as np
    import pyarrow as pa

    rows = len(digest)
    ids, checks, blank = np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.zeros(rows, bool)
    in_sql = np.asarray(digest.is_valid())
    ids[in_sql], checks[in_sql] = _halves_of_hex(digest)
    left = (~in_sql | _has_control(caption)) & np.asarray(caption.is_valid())
    for position, text in zip(np.flatnonzero(left).tolist(), caption.filter(pa.array(left)).to_pylist(), strict=True):
        halves = _cleaned_halves(text)
        blank[position] = halves is None
        ids[position], checks[position] = halves or (0, 0)
    return ids, checks, blank


def _has_control(texts: pa.Array) -> np.ndarray:
    """bool [n]: in which texts a control character of ASCII stands."""
    import numpy as np

    rows = np.zeros(len(texts), bool)
    offsets = _offsets(texts)
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    places = np.flatnonzero((data < ord(" ")) | (data == 0x7F)) + offsets[0]
    rows[np.searchsorted(offsets, places, side="right") - 1] = True
    return rows


def _offsets(texts: pa.Array) -> np.ndarray:
    """int32 [n + 1]: where each text begins in the buffer."""
    import numpy as np

    return np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]


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
    offsets = _offsets(present)
    raw = binascii.unhexlify(memoryview(present.buffers()[2])[offsets[0] : offsets[-1]])
    words = np.frombuffer(raw, ">u8").reshape(-1, 4)[:, :2] & np.uint64((1 << 63) - 1)
    return words[:, 0].astype(np.int64), words[:, 1].astype(np.int64)
