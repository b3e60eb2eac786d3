"""What the retrieve and class-images stages are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import field_validator, model_validator

from cdkit.core.config import ModelConfig, ParallelConfig, StageConfig, did_you_mean, setting
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.licences import LICENCES
from cdkit.fetching.job import MAX_THREADS
from cdkit.pictures.layouts import ALL_LAYOUTS
from cdkit.pictures.picture import NEAR
from cdkit.pictures.trainers import TRAINERS
from cdkit.sampling.config import SampleConfig

# As the paper drew its class images.
PAPER_ETA, PAPER_STEPS, PAPER_GUIDANCE = 1.0, 50, 6.0

_ALSO_WRITE = f"Also write the set as {', '.join(ALL_LAYOUTS[:-1])} or {ALL_LAYOUTS[-1]}. Repeatable."


class TrainerSettings(StageConfig):
    """What layouts of other trainers hold beside the set."""

    photos: str | None = setting(
        None, "The concept's own photos: layouts of trainers hold both, shown equally often.", input="folder"
    )
    instance_word: str = setting("ohwx", "What captions of the photos call the concept, in those layouts.")
    class_word: str | None = setting(
        None, "What the set shows, in those layouts [default: what the first prompt is a photo of]."
    )


class PictureCheckSettings(StageConfig):
    """What pictures must be by their pixels, whatever their pool and captions say; each is a reason in the funnel."""

    image_encoder: str | None = setting(
        None,
        "CLIP that looks at the pictures: open_clip:ViT-L-14/openai, … [default: the index's encoder].",
        input="encoder",
    )
    image_text_min: float | None = setting(
        None, "Least similarity of a picture to its caption [default: not asked].", ge=-1, le=1
    )
    semantic_duplicates: float | None = setting(
        None,
        "Similarity from which two pictures, or a picture and a photo of --exclude-like or --match, show the same "
        "[default: not asked].",
        ge=-1,
        le=1,
    )
    reject_like: list[str] = setting([], "What no picture may show, such as 'a screenshot of text'. Repeatable.")
    require_like: list[str] = setting([], "What a picture must show, one of these. Repeatable.")
    like_margin: float = setting(
        0.02, "By how much closer a picture is to such a text than to 'a picture' when it shows it.", ge=-1, le=1
    )
    nsfw_pictures: bool | None = setting(
        None, "Also judge by the pixels what is unsafe [default: where --image-encoder is given]."
    )
    min_sharpness: float | None = setting(
        None, "Least sharpness (variance of the Laplacian); 50 leaves out blurred pictures [default: any].", ge=0
    )
    max_flat: float | None = setting(
        None, "Largest share of one colour; 0.95 leaves out placeholders [default: any].", ge=0, le=1
    )
    max_text: float | None = setting(
        None, "Largest share covered by text; 0.15 leaves out pages and screenshots [default: any].", ge=0, le=1
    )

    @field_validator("reject_like", "require_like", mode="before", json_schema_input_type=str | list[str])
    @classmethod
    def _texts(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_texts(self) -> PictureCheckSettings:
        if not all(text.strip() for text in (*self.reject_like, *self.require_like)):
            raise ValueError("reject_like, require_like: no text may be empty")
        return self


class RetrieveConfig(ParallelConfig, TrainerSettings, PictureCheckSettings):
    """Which images to find, what they must be, and what stands in for those that are not found."""

    index: str = setting(help="The caption index to search: a folder, or hub:USER/NAME.", argument=True, input="index")
    prompts: list[str] = setting(
        [],
        "What captions should say: one prompt or several of one concept; none where --match says it.",
        argument=True,
    )
    count: int = setting(200, "Images to accept.", ge=1)
    min_similarity: float | None = setting(
        None, "Least similarity of a caption to a prompt [default: the encoder's threshold].", ge=-1, le=1
    )
    select: Literal["top", "spread"] = setting(
        "top", "Most similar captions first, or spread: as different from each other as can be."
    )
    match: str | None = setting(
        None,
        "Folder of the concept's photos: captions near each photo's own (or near the photo, with prompts) in turn.",
        input="folder",
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
    decisions: list[str] = setting(
        [],
        "Pictures rejected by hand (the decisions.parquet of cdkit review): they do not come back. Repeatable.",
        input="folder",
    )
    min_side: int = setting(128, "Least side of an image, in pixels.", ge=1)
    max_aspect_ratio: float = setting(3.0, "Longer side over shorter side at most.", ge=1)
    max_side: int = setting(1024, "Larger images are shrunk to this longer side, in pixels.", ge=16)
    near_duplicate_bits: int = setting(
        NEAR, "Bits of 64 in which perceptual hashes of near-duplicates differ at most.", ge=0, le=32
    )
    nsfw_limit: Literal["unlikely", "unsure", "nsfw"] = setting("nsfw", "Worst NSFW rating of the pool to accept.")
    max_punsafe: float | None = setting(None, "Largest punsafe of the pool to accept.", ge=0, le=1)
    max_pwatermark: float | None = setting(None, "Largest pwatermark of the pool to accept.", ge=0, le=1)
    licence: list[str] = setting(
        [], f"Licences to accept, unknown is none of them: {', '.join(LICENCES)}. Several with commas, or repeatable."
    )
    min_pool_similarity: float | None = setting(None, "Least image–text similarity by the pool.", ge=-1, le=1)
    max_captions: int | None = setting(
        None, "Captions to consider per prompt [default: ten per image, at least 1000].", ge=1
    )
    deadline: float = setting(15.0, "Seconds one download may take.", ge=0.1, le=600)
    retries: int = setting(1, "Further tries after a timeout, a reset or a server error.", ge=0, le=10)
    max_bytes: int = setting(16 << 20, "Largest download, in bytes.", ge=1, le=1 << 30)
    respect_robots: bool = setting(False, "Ask every host's robots.txt and ai.txt first, and keep to them.")
    allow_host: list[str] = setting([], "HOST[:PORT] exempt from the checks of address and port. Repeatable.")
    also_write: list[str] = setting([], _ALSO_WRITE)
    seed: int = setting(0, "Seed of select spread.", ge=0)
    proxy: str | None = setting(
        None, "http://[USER:PASSWORD@]HOST:PORT that everything is fetched through.", execution=True
    )
    downloads: int = setting(MAX_THREADS, "Downloads at once.", execution=True, ge=1, le=MAX_THREADS)
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
        None, "Device of the base model and the image encoder [default: the GPU when there is one].", execution=True
    )

    @model_validator(mode="before")
    @classmethod
    def _embedded_base(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("fill") and not values.get("base"):
            return {**values, "base": EMBEDDED}
        return values

    @field_validator("licence", mode="before", json_schema_input_type=str | list[str])
    @classmethod
    def _named_licences(cls, value: Any) -> Any:
        if not isinstance(value, str | list) or not all(isinstance(item, str) for item in value):
            return value
        texts = [value] if isinstance(value, str) else value
        names = [name.strip().lower() for text in texts for name in text.split(",") if name.strip()]
        for name in names:
            if name not in LICENCES:
                raise ValueError(f"there is no licence {name!r}{did_you_mean(name, LICENCES)}")
        return names

    @field_validator("exclude_like", "decisions", mode="before", json_schema_input_type=str | list[str])
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> RetrieveConfig:
        _check_prompts(self.prompts)
        _check_layouts("also_write", self.also_write, self.trained_photos(), self)
        if not self.prompts and self.match is None:
            raise ValueError("prompts: give at least one, or photos to match (--match FOLDER)")
        if self.match is not None and self.select != "top":
            raise ValueError("select orders captions by themselves, match by the photos: give one of them")
        if self.fill and not self.prompts:
            raise ValueError("fill draws the prompts: give at least one")
        if self.base and not self.fill:
            raise ValueError("base is the model that draws what is missing; add fill (--fill generated)")
        return self

    def trained_photos(self) -> str | None:
        """The photos that trainers' layouts hold: those named, else the only ones that the set is kept apart from."""
        return self.photos or self.match or (self.exclude_like[0] if len(self.exclude_like) == 1 else None)


class ClassImagesConfig(ModelConfig, TrainerSettings):
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
    also_write: list[str] = setting([], _ALSO_WRITE)
    precision: Literal["no", "bf16", "fp16"] = setting("no", "Compute type; no is fp32.")
    batch_size: int = setting(8, "Images drawn at once; does not change them.", execution=True, ge=1)

    @model_validator(mode="after")
    def _check(self) -> ClassImagesConfig:
        _check_prompts(self.prompts)
        _check_layouts("also_write", self.also_write, self.photos, self)
        return self

    def sampling(self) -> SampleConfig:
        """The same as the sample stage takes it."""
        own = {"prompts", "count", "seed", "also_write", "threads", *TrainerSettings.model_fields}
        shared = self.model_dump(exclude=own)
        return SampleConfig(prompts=self.prompts, **shared)


class DatasetConfig(TrainerSettings):
    """Which set to write for which programs."""

    folder: str = setting(help="The regularization set.", argument=True, input="folder")
    to: list[str] = setting(help=f"The layout: {', '.join(ALL_LAYOUTS)}. Repeatable.", min_length=1)

    @field_validator("to", mode="before", json_schema_input_type=str | list[str])
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> DatasetConfig:
        _check_layouts("to", self.to, self.photos, self)
        return self


def _check_prompts(prompts: Sequence[str]) -> None:
    if not all(prompt.strip() for prompt in prompts):
        raise ValueError("prompts: no prompt may be empty")


def _check_layouts(name: str, layouts: Sequence[str], photos: str | None, words: TrainerSettings) -> None:
    for layout in layouts:
        if layout not in ALL_LAYOUTS:
            raise ValueError(f"{name}: there is no layout {layout!r}{did_you_mean(layout, ALL_LAYOUTS)}")
    trainers = [layout for layout in layouts if layout in TRAINERS]
    if trainers and photos is None:
        raise ValueError(
            f"photos: missing; {trainers[0]} shows the set as often as the concept's photos (--photos FOLDER)"
        )
    for field in ("instance_word", "class_word"):
        value = getattr(words, field)
        if value is not None and not value.strip():
            raise ValueError(f"{field}: it may not be empty")
