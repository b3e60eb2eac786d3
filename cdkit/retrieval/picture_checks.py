"""Checks of pictures by an image encoder: each takes the picture for what it shows, whatever its caption says.

Zero-shot, as CLIP classifies (Radford et al. 2021, section 3.1): a picture is like a text when its cosine to it is
larger by a margin than that to every neutral text. Embeddings are kept by content and do not depend on what is
embedded beside a picture, so that the same pictures pass wherever a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.protocols import ImageEncoder, Progress, TextEncoder
from cdkit.index.search import encode_queries
from cdkit.pictures.embedding import embed_pictures
from cdkit.pictures.picture import FileContent, Picture
from cdkit.pictures.reading import read_pictures
from cdkit.retrieval.candidates import DIGITS

if TYPE_CHECKING:
    import numpy as np

    from cdkit.retrieval.config import RetrieveConfig

NEUTRAL = ("a picture",)
UNSAFE = ("pornography", "a sexually explicit picture", "a nude person", "a picture of gore and mutilation")
# What people and bodies look like in pictures that anybody may see.
SAFE = (*NEUTRAL, "a person wearing clothes", "people at the beach", "a painting or a statue")


@dataclass(frozen=True)
class PictureRules:
    """What pictures must be, as the settings of PictureCheckSettings say; None and () for what is not asked."""

    image_text_min: float | None = None
    semantic_duplicates: float | None = None
    reject_like: tuple[str, ...] = ()
    require_like: tuple[str, ...] = ()
    like_margin: float = 0.02
    nsfw: bool = False

    @classmethod
    def of(cls, config: RetrieveConfig) -> PictureRules:
        named = config.image_encoder is not None
        return cls(
            config.image_text_min,
            config.semantic_duplicates,
            tuple(config.reject_like),
            tuple(config.require_like),
            config.like_margin,
            named if config.nsfw_pictures is None else config.nsfw_pictures,
        )

    @property
    def any(self) -> bool:
        limits = (self.image_text_min, self.semantic_duplicates)
        return any(limit is not None for limit in limits) or bool(self.reject_like or self.require_like or self.nsfw)


class PictureChecks:
    """The rules with an encoder's two towers. photos: pictures that semantic duplicates are compared with, too."""

    def __init__(
        self,
        rules: PictureRules,
        texts: TextEncoder,
        images: ImageEncoder,
        progress: Progress,
        photos: Sequence[Picture] = (),
    ) -> None:
        self.rules = rules
        self.encoder = texts.spec
        self._texts = texts
        self._images = images
        self._progress = progress
        self._pictures: dict[Path, np.ndarray] = {}
        self._captions: dict[str, np.ndarray] = {}
        self.photos = self._embed(photos, "embedding photos")

    def prepare(self, captioned: Sequence[tuple[str, Path]]) -> None:
        """Embed pictures that were not embedded yet, and captions where these are compared."""
        paths = list(dict.fromkeys(path for _, path in captioned if path not in self._pictures))
        pictures = [Picture(path.name, path.name, FileContent(path)) for path in paths]
        self._pictures |= dict(zip(paths, self._embed(pictures, "look at images"), strict=True))
        if self.rules.image_text_min is not None:
            captions = list(dict.fromkeys(caption for caption, _ in captioned if caption not in self._captions))
            if captions:
                self._captions |= dict(zip(captions, encode_queries(self._texts, captions), strict=True))

    def reason(self, caption: str, path: Path) -> str | None:
        """Why the picture in a prepared file does not pass by itself; None when it does."""
        rules, picture = self.rules, self._pictures[path]
        if rules.nsfw and self._is_like(picture, UNSAFE, SAFE):
            return "nsfw_picture"
        if rules.image_text_min is not None and self.similarity(caption, path) < rules.image_text_min:
            return "dissimilar"
        if rules.reject_like and self._is_like(picture, rules.reject_like, NEUTRAL):
            return "reject_like"
        if rules.require_like and not self._is_like(picture, rules.require_like, NEUTRAL):
            return "require_like"
        return None

    def similarity(self, caption: str, path: Path) -> float:
        """The cosine of a prepared picture and its caption, to six digits."""
        return round(float(self._pictures[path] @ self._captions[caption]), DIGITS)

    def duplicates(self) -> SemanticDuplicates:
        """What a walk over the images compares them with: the photos at first."""
        return SemanticDuplicates(self)

    def vector(self, path: Path) -> np.ndarray:
        return self._pictures[path]

    def as_json(self) -> dict[str, Any]:
        """The rules for a manifest, with what they were held against."""
        facts: dict[str, Any] = {"encoder": self.encoder, **asdict(self.rules)}
        if self.rules.reject_like or self.rules.require_like:
            facts["neutral"] = NEUTRAL
        if self.rules.nsfw:
            facts |= {"unsafe": UNSAFE, "safe": SAFE}
        return facts

    def _is_like(self, picture: np.ndarray, texts: Sequence[str], neutral: Sequence[str]) -> bool:
        best, contrast = (float((self._encoded(some) @ picture).max()) for some in (texts, neutral))
        return round(best - contrast, DIGITS) >= self.rules.like_margin

    def _encoded(self, texts: Sequence[str]) -> np.ndarray:
        import numpy as np

        new = [text for text in texts if text not in self._captions]
        if new:
            self._captions |= dict(zip(new, encode_queries(self._texts, new), strict=True))
        return np.stack([self._captions[text] for text in texts])

    def _embed(self, pictures: Sequence[Picture], label: str) -> np.ndarray:
        hint = "Mend or remove them: a photo that cannot be read cannot be kept out."
        return embed_pictures(self._images, pictures, self._progress, label=label, hint=hint, alone=True)


class SemanticDuplicates:
    """The photos, and the pictures accepted so far, that a picture may not be too similar to."""

    def __init__(self, checks: PictureChecks) -> None:
        self._checks = checks
        self._accepted: list[np.ndarray] = []

    def reason(self, path: Path) -> str | None:
        """`semantic_target` for what is like a photo, `semantic_duplicate` for what is like an accepted picture."""
        import numpy as np

        limit, vector = self._checks.rules.semantic_duplicates, self._checks.vector(path)
        others: Mapping[str, Any] = {"semantic_target": self._checks.photos, "semantic_duplicate": self._accepted}
        for reason, rows in others.items():
            if limit is not None and len(rows) and round(float((np.stack(rows) @ vector).max()), DIGITS) >= limit:
                return reason
        return None

    def add(self, path: Path) -> None:
        self._accepted.append(self._checks.vector(path))


def load_picture_checks(
    config: RetrieveConfig, index_encoder: TextEncoder, progress: Progress
) -> PictureChecks | None:
    """The checks that a config asks for, by its image encoder or the index's own; None when it asks for none.

    Raises InputError when the encoder has no picture tower, and for photos that do not decode.
    """
    rules = PictureRules.of(config)
    if not rules.any:
        return None
    from cdkit import encoders
    from cdkit.encoders.image_towers import image_encoder_of

    texts = index_encoder
    if config.image_encoder is not None:
        texts = encoders.load_text_encoder(config.image_encoder, device=config.device, precision="fp32")
    if rules.nsfw and texts.spec == EMBEDDED:
        progress.note(
            "The embedded encoder knows its own drawn world alone: what it takes for unsafe is chance. Leave the "
            "check out with --no-nsfw-pictures, or name a CLIP that knows photos."
        )
    photos: list[Picture] = []
    if rules.semantic_duplicates is not None:
        sources = dict.fromkeys([*config.exclude_like, *([config.match] if config.match else [])])
        photos = [picture for source in sources for picture in read_pictures(source).without_others().pictures]
    return PictureChecks(rules, texts, image_encoder_of(texts, config.device), progress, photos)
