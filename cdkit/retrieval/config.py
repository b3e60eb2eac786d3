"""Settings of the stages retrieve and class-images, and the parts of them that candidates and acceptance read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import field_validator, model_validator

from cdkit.core.config import ModelConfig, ParallelConfig, did_you_mean, setting
from cdkit.core.errors import ConfigError
from cdkit.core.fingerprints import EMBEDDED
from cdkit.fetching.job import MAX_THREADS, FetchSettings
from cdkit.pictures.hashing import NEAR
from cdkit.pictures.layouts import LAYOUTS
from cdkit.sampling.config import SampleConfig

Selection = Literal["top", "spread"]
NSFW_RATINGS = ("unlikely", "unsure", "nsfw")
# Captions taken per prompt for each image wanted: enough even where one link in ten works. Each is encoded again, so
# that more would cost seconds for nothing.
CAPTIONS_PER_IMAGE = 10
MIN_CAPTIONS = 1000


@dataclass(frozen=True)
class Filters:
    """What an image row must satisfy. A value that the pool does not know passes, but for ratings with rated_only."""

    min_side: int | None = None
    max_aspect_ratio: float | None = None
    nsfw_limit: Literal["unlikely", "unsure", "nsfw"] = "nsfw"
    rated_only: bool = False
    max_punsafe: float | None = None
    max_pwatermark: float | None = None
    min_pool_similarity: float | None = None

    def reason(self, row: Mapping[str, Any]) -> str | None:
        """Why an image row is rejected; None when it is kept."""
        width, height = row.get("width"), row.get("height")
        if self.rated_only and row.get("nsfw") is None and row.get("punsafe") is None:
            return "unrated"
        rating = str(row.get("nsfw") or "").lower()
        if rating in NSFW_RATINGS and NSFW_RATINGS.index(rating) > NSFW_RATINGS.index(self.nsfw_limit):
            return "nsfw"
        if _above(row.get("punsafe"), self.max_punsafe):
            return "punsafe"
        if _above(row.get("pwatermark"), self.max_pwatermark):
            return "watermark"
        if _above(self.min_pool_similarity, row.get("pool_similarity")):
            return "pool_similarity"
        sides = [side for side in (width, height) if side is not None]
        if sides and _above(self.min_side, min(sides)):
            return "too_small"
        if len(sides) == 2 and min(sides) > 0 and _above(max(sides) / min(sides), self.max_aspect_ratio):
            return "aspect_ratio"
        return None


def _above(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit


@dataclass(frozen=True)
class CandidateSettings:
    """Which candidates are taken, and in which order.

    min_similarity: None for the encoder's own threshold. per_caption: images that may be accepted per caption.
    max_captions: taken per prompt, best first; None for enough even where one link in ten works.
    """

    min_similarity: float | None = None
    filters: Filters = field(default_factory=Filters)
    select: Selection = "top"
    per_caption: int = 1
    max_captions: int | None = None
    seed: int = 0

    def caption_limit(self, wanted: int) -> int:
        """Captions to take per prompt for `wanted` images; raises ConfigError for impossible settings."""
        if wanted < 1 or self.per_caption < 1:
            raise ConfigError(f"At least one image, and one per caption: got {wanted} and {self.per_caption}.")
        return max(MIN_CAPTIONS, CAPTIONS_PER_IMAGE * wanted) if self.max_captions is None else self.max_captions


@dataclass(frozen=True)
class Limits:
    """How many images are wanted, at most how many of them per caption, and per host (None: any number)."""

    wanted: int
    per_caption: int = 1
    per_host: int | None = None


class RetrieveConfig(ParallelConfig):
    """Which images to find, and what they must be."""

    index: str = setting(help="The caption index to search.", argument=True, input="folder")
    prompts: list[str] = setting(
        help="What captions should say: one prompt or several of one concept.", argument=True, min_length=1
    )
    count: int = setting(200, "Images to accept.", ge=1)
    min_similarity: float | None = setting(
        None, "Least similarity of a caption to a prompt [default: the encoder's threshold].", ge=-1, le=1
    )
    select: Selection = setting(
        "top", "Most similar captions first, or spread: as different from each other as can be."
    )
    images: str | None = setting(
        None,
        "Images at hand instead of the web: a folder with captions, img2dataset output, or 'embedded'.",
        input="folder",
    )
    per_caption: int = setting(1, "Images per caption at most.", ge=1)
    per_host: int | None = setting(None, "Images per host at most [default: any number].", ge=1)
    exclude_like: list[str] = setting(
        [], "Folder with the concept's own photos: nothing like them gets in. Repeatable.", input="folder"
    )
    blocklist: str | None = setting(
        None, "File of URLs and hashes, one a line; what matches is never written.", input="folder"
    )
    min_side: int = setting(128, "Least side of an image, in pixels.", ge=1)
    max_aspect_ratio: float = setting(3.0, "Longer side over shorter side at most.", ge=1)
    max_side: int = setting(1024, "Larger images are shrunk to this longer side, in pixels.", ge=16)
    near_duplicate_bits: int = setting(
        NEAR, "Bits of 64 in which perceptual hashes of near-duplicates differ at most.", ge=0, le=32
    )
    min_image_similarity: float | None = setting(
        None,
        "Least CLIP similarity of an image to its caption, by the index's encoder [default: not asked].",
        ge=-1,
        le=1,
    )
    nsfw_limit: Literal["unlikely", "unsure", "nsfw"] = setting("nsfw", "Worst NSFW rating of the pool to accept.")
    max_punsafe: float | None = setting(None, "Largest punsafe of the pool to accept.", ge=0, le=1)
    max_pwatermark: float | None = setting(None, "Largest pwatermark of the pool to accept.", ge=0, le=1)
    min_pool_similarity: float | None = setting(None, "Least image–text similarity by the pool.", ge=-1, le=1)
    max_captions: int | None = setting(
        None, "Captions to consider per prompt [default: ten per image, at least 1000].", ge=1
    )
    deadline: float = setting(15.0, "Seconds one download may take.", ge=0.1, le=600)
    retries: int = setting(1, "Further tries after a timeout, a reset or a server error.", ge=0, le=10)
    max_bytes: int = setting(16 << 20, "Largest download, in bytes.", ge=1, le=1 << 30)
    allow_host: list[str] = setting([], "HOST[:PORT] exempt from the checks of address and port. Repeatable.")
    also_write: list[str] = setting([], "Also write the set as diffusers, imagefolder or webdataset. Repeatable.")
    seed: int = setting(0, "Seed of select spread.", ge=0)
    proxy: str | None = setting(
        None, "http://[USER:PASSWORD@]HOST:PORT that everything is fetched through.", execution=True
    )
    downloads: int = setting(MAX_THREADS, "Downloads at once.", execution=True, ge=1, le=MAX_THREADS)

    @field_validator("exclude_like", mode="before", json_schema_input_type=str | list[str])
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> RetrieveConfig:
        if not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("prompts: no prompt may be empty")
        for name in self.also_write:
            if name not in LAYOUTS:
                raise ValueError(f"also_write: there is no layout {name!r}{did_you_mean(name, LAYOUTS)}")
        return self

    def candidate_settings(self) -> CandidateSettings:
        filters = Filters(
            min_side=self.min_side,
            max_aspect_ratio=self.max_aspect_ratio,
            nsfw_limit=self.nsfw_limit,
            max_punsafe=self.max_punsafe,
            max_pwatermark=self.max_pwatermark,
            min_pool_similarity=self.min_pool_similarity,
        )
        return CandidateSettings(
            self.min_similarity, filters, self.select, self.per_caption, self.max_captions, self.seed
        )

    def fetch_settings(self) -> FetchSettings:
        return FetchSettings(
            threads=self.downloads,
            deadline=self.deadline,
            retries=self.retries,
            max_bytes=self.max_bytes,
            allow_hosts=tuple(self.allow_host),
            proxy=self.proxy,
        )

    def limits(self) -> Limits:
        return Limits(self.count, self.per_caption, self.per_host)


PAPER_ETA, PAPER_STEPS, PAPER_GUIDANCE = 1.0, 50, 6.0


class ClassImagesConfig(ModelConfig):
    """Which images to draw, and with what."""

    prompts: list[str] = setting(
        help="What the images show: 'photo of a dog', or several prompts by turns.", argument=True, min_length=1
    )
    count: int = setting(200, "Images to draw.", ge=1)
    seed: int = setting(0, "The first image's seed; the others follow.", ge=0, le=2**62)
    steps: int = setting(PAPER_STEPS, "Denoising steps of DDIM.", ge=1, le=1000)
    eta: float = setting(PAPER_ETA, "Noise of DDIM: 0 is deterministic, 1 is DDPM's.", ge=0, le=1)
    guidance: float = setting(PAPER_GUIDANCE, "Classifier-free guidance scale.", ge=0)
    negative_prompt: str = setting("", "What the images should not show.")
    resolution: int | None = setting(None, "Side of the images in pixels [default: the base model's].", ge=8)
    also_write: list[str] = setting([], "Also write the set as diffusers, imagefolder or webdataset. Repeatable.")
    precision: Literal["no", "bf16", "fp16"] = setting("no", "Compute type; no is fp32.")
    batch_size: int = setting(8, "Images drawn at once; does not change them.", execution=True, ge=1)

    @model_validator(mode="after")
    def _check(self) -> ClassImagesConfig:
        if not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("prompts: no prompt may be empty")
        for name in self.also_write:
            if name not in LAYOUTS:
                raise ValueError(f"also_write: there is no layout {name!r}{did_you_mean(name, LAYOUTS)}")
        return self

    def sampling(self) -> SampleConfig:
        """The same as the sample stage takes it."""
        shared = ("base", "steps", "eta", "guidance", "negative_prompt", "resolution", "precision", "batch_size")
        values = {name: getattr(self, name) for name in (*shared, "device")}
        return SampleConfig(prompts=self.prompts, scheduler="ddim", **values)


class FilledRetrieveConfig(RetrieveConfig):
    """Which images to find, what they must be, and what stands in for those that are not found."""

    fill: Literal["generated"] | None = setting(
        None, "generated: the base model draws what was not found, marked as generated."
    )
    base: str | None = setting(
        None,
        "Base model that draws: 'embedded', a diffusers folder, or a hub id [default: embedded].",
        input="model",
    )
    precision: Literal["no", "bf16", "fp16"] = setting("no", "Compute type of the base model; no is fp32.")
    device: str | None = setting(
        None, "Device of the base model [default: the GPU when there is one].", execution=True
    )

    @model_validator(mode="before")
    @classmethod
    def _base(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("fill") and not values.get("base"):
            return {**values, "base": EMBEDDED}
        return values

    @model_validator(mode="after")
    def _something_to_draw(self) -> FilledRetrieveConfig:
        if self.base and not self.fill:
            raise ValueError("base is the model that draws what is missing; add fill (--fill generated)")
        return self
