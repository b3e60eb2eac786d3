"""A map of pictures: their image embeddings in the plane of their two greatest differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdkit.core.errors import ConfigError
from cdkit.pictures.decoding import open_bytes
from cdkit.serving.review_set import ReviewSet

if TYPE_CHECKING:
    import numpy as np

# Encoders see 224 to 512 pixels.
LONGEST_SIDE = 512
BATCH = 64
DIGITS = 4


def map_pictures(reviewed: ReviewSet) -> list[tuple[str, float, float]]:
    """(key, x, y) of every picture, both between 0 and 1.

    Raises ConfigError where there is nothing to look at, or nothing to look with.
    """
    import numpy as np

    stored = [picture for picture in reviewed.pictures if picture.place is not None]
    if len(stored) < 3:
        raise ConfigError("A map needs three pictures that are stored in a set.")
    if reviewed.encoder is None:
        raise ConfigError(
            "This set does not say with what it was made.", hint="Name an image encoder: --encoder SPEC."
        )
    from cdkit.encoders.image_towers import load_image_encoder

    tower = load_image_encoder(reviewed.encoder)
    embeddings = []
    for start in range(0, len(stored), BATCH):
        contents = [(picture.content() or b"", picture.key) for picture in stored[start : start + BATCH]]
        embeddings.append(tower.encode_images([open_bytes(content, key, LONGEST_SIDE) for content, key in contents]))
    places = plane(np.concatenate(embeddings))
    return [
        (picture.key, round(x, DIGITS), round(y, DIGITS))
        for picture, (x, y) in zip(stored, places.tolist(), strict=True)
    ]


def plane(vectors: np.ndarray) -> np.ndarray:
    """The first two principal components of float32 [n, d], each stretched to 0 … 1, float64 [n, 2].

    The sign of a component is free: the farthest picture gets the positive side, so that a map is always the same.
    """
    import numpy as np

    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    left, scales, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(vectors), 2))
    used = min(2, left.shape[1])
    places[:, :used] = left[:, :used] * scales[:used]
    farthest = np.abs(places).argmax(axis=0)
    places *= np.where(places[farthest, [0, 1]] < 0, -1.0, 1.0)
    low, high = places.min(axis=0), places.max(axis=0)
    stretched: np.ndarray = (places - low) / np.where(high > low, high - low, 1.0)
    return stretched
