"""Near-duplicates by perceptual hash: 64 bits of the lowest frequencies (phash of the ImageHash library)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# Of 64 bits. On 1,704 real photos and drawings every pair up to 4 is a copy or two views of the same drawing.
NEAR = 4


def perceptual_hash(picture: Image.Image) -> int:
    """The 64-bit phash of a picture."""
    import imagehash

    return int(str(imagehash.phash(picture)), 16)


def mirrored_hash(picture: Image.Image) -> int:
    """The phash of the picture seen in a mirror."""
    from PIL import ImageOps

    return perceptual_hash(ImageOps.mirror(picture))


class NearHashes:
    """A growing set of 64-bit hashes that answers whether one is within `distance` bits of any."""

    def __init__(self, distance: int, hashes: Sequence[int] = ()) -> None:
        import numpy as np

        self._distance = distance
        self._hashes: np.ndarray = np.zeros(max(64, len(hashes)), dtype=np.uint64)
        self._count = len(hashes)
        self._hashes[: self._count] = np.array(hashes, dtype=np.uint64)

    def __contains__(self, value: int) -> bool:
        import numpy as np

        if not self._count:
            return False
        apart = np.bitwise_count(self._hashes[: self._count] ^ np.uint64(value))
        return int(apart.min()) <= self._distance

    def add(self, value: int) -> None:
        import numpy as np

        if self._count == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
        self._hashes[self._count] = value
        self._count += 1
