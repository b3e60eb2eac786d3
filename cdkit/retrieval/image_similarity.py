"""How well an image fits its caption: the cosine of their embeddings by the CLIP whose text tower made the index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.index.search import encode_queries
from cdkit.retrieval.candidates import DIGITS

if TYPE_CHECKING:
    from cdkit.protocols import ImageEncoder, TextEncoder


class ClipScorer:
    """Scores one image at a time: what shares its batch must not decide in its last digits whether it is accepted."""

    def __init__(self, images: ImageEncoder, texts: TextEncoder) -> None:
        self._images = images
        self._texts = texts

    def score(self, caption: str, path: Path) -> float:
        """Cosine of a caption and the picture in a file, rounded to six digits."""
        from cdkit.pictures.decoding import open_file

        seen = self._images.encode_images([open_file(path)])[0]
        said = encode_queries(self._texts, [caption])[0]
        return round(float(seen @ said), DIGITS)


def load_scorer(texts: TextEncoder) -> ClipScorer:
    """The scorer with the picture tower of a text encoder's own CLIP; raises as loading an encoder does."""
    from cdkit.encoders.image_towers import load_image_encoder

    return ClipScorer(load_image_encoder(texts.spec), texts)
