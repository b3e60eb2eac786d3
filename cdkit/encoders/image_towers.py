"""Image encoders: the picture towers of the CLIPs that `encoders` reads text with, and DINO or other ViTs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdkit.core.errors import CdkitError, ConfigError, InputError
from cdkit.core.machine import choose_device
from cdkit.core.startup import import_clip
from cdkit.encoders import parse_spec
from cdkit.encoders.cpu_products import use_fast_products
from cdkit.encoders.text_tower import tower_hash
from cdkit.encoders.transformers import loading_error

if TYPE_CHECKING:
    from PIL import Image

    from cdkit.core.protocols import TextEncoder

BATCH = 32
# Self-supervised towers have no projection: their class token is the embedding (DINO, Caron et al. 2021).
CLASS_TOKEN_TYPES = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit_mae", "deit", "beit")
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageTower:
    """A library's picture tower in fp32 on the CPU.

    prepare: RGB images to float (n, 3, height, width); forward: those to embeddings (n, dimension), not normalised.
    facts: settings that decide the output besides the weights; skipped: prefixes of parameters in `module` that are
    no part of it.
    """

    module: nn.Module
    prepare: Callable[[Sequence[Image.Image]], Tensor]
    forward: Callable[[Tensor], Tensor]
    facts: Mapping[str, Any]
    skipped: tuple[str, ...] = ()


class TowerImageEncoder:
    """The ImageEncoder of an ImageTower; always fp32, so that scores do not depend on the device's half precision."""

    def __init__(self, spec: str, tower: ImageTower, *, device: str) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self._tower = tower
        self._hash = tower_hash(tower.module.state_dict(), tower.facts, tower.skipped)
        tower.module.eval().requires_grad_(False).to(self.device)
        if self.device.type == "cpu":
            use_fast_products(tower.module)
        self.dimension = int(self._embed([_grey()]).shape[1])

    def weights_hash(self) -> str:
        """sha256 in hex of the picture tower: its weights and what else decides its output."""
        return self._hash

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """float32 [n, dimension], rows of norm 1; raises InputError when some are not numbers."""
        vectors = np.empty((len(images), self.dimension), dtype=np.float32)
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            vectors[start : start + len(batch)] = self._embed(batch).cpu().numpy()
        if not (np.abs(np.einsum("nd,nd->n", vectors, vectors) - 1) < 0.01).all():
            raise InputError(
                f"The image encoder {self.spec!r} gives NaN, infinite or zero embeddings.",
                hint="Its checkpoint is broken; use another copy.",
            )
        return vectors

    @torch.inference_mode()
    def _embed(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = self._tower.prepare([image.convert("RGB") for image in images])
        return F.normalize(self._tower.forward(pixels.to(self.device)).float(), dim=-1)


def load_image_encoder(spec: str, *, device: str | None = None) -> TowerImageEncoder:
    """Load the picture tower that `spec` names: embedded, open_clip:…, or transformers:… (CLIP, SigLIP, DINO, ViT).

    device: a torch device, None for a GPU when there is one. Raises ConfigError, InputError or NetworkError with a
    hint.
    """
    library, location = parse_spec(spec)
    chosen = str(choose_device(device))
    if library == "embedded":
        tower = _embedded_tower()
    elif library == "open_clip":
        tower = _open_clip_tower(location)
    else:
        tower = _transformers_tower(location)
    return TowerImageEncoder(spec, tower, device=chosen)


def image_encoder_of(texts: TextEncoder, device: str | None = None) -> TowerImageEncoder:
    """The picture tower of a text encoder's own model; raises InputError when it has none in the same space."""
    hint = "Give a CLIP with both towers, such as open_clip:ViT-L-14/openai."
    try:
        images = load_image_encoder(texts.spec, device=device)
    except CdkitError as error:
        raise InputError(f"The encoder {texts.spec!r} reads no pictures: {error.message}", hint=hint) from error
    if images.dimension != texts.dimension:
        sizes = f"{texts.dimension} and {images.dimension}"
        raise InputError(f"The text and image towers of {texts.spec!r} do not share a space ({sizes}).", hint=hint)
    return images


def _grey() -> Image.Image:
    from PIL import Image

    return Image.new("RGB", (64, 64), (120, 130, 110))


def _embedded_tower() -> ImageTower:
    from cdkit.embedded.models import preprocess
    from cdkit.encoders.embedded import load_picture_tower

    holder, forward = load_picture_tower()
    return ImageTower(holder, preprocess, forward, {"library": "embedded"})


def clip_picture_tower(model: Any, prepare: Callable[..., Tensor], facts: Mapping[str, Any]) -> ImageTower:
    """The picture tower of a CLIP of transformers."""
    holder = nn.ModuleDict({"vision_model": model.vision_model, "visual_projection": model.visual_projection})

    def forward(pixels: Tensor) -> Tensor:
        projected: Tensor = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        return projected

    return ImageTower(holder, prepare, forward, facts)


def _open_clip_tower(location: str) -> ImageTower:
    from cdkit.encoders.open_clip import find_source, quietly
    from cdkit.encoders.tokenizing import open_clip_library

    open_clip = open_clip_library()
    with quietly():
        source = find_source(location)
        options: dict[str, Any] = {} if source.quick_gelu is None else {"quick_gelu": source.quick_gelu}
        tag = None if source.name.startswith(("local-dir:", "hf-hub:")) else location.partition("/")[2]
        try:
            model, transform = open_clip.create_model_from_pretrained(source.name, pretrained=tag, **options)
        except Exception as error:
            raise loading_error("open_clip", location, source.local, error) from error

    def prepare(images: Sequence[Image.Image]) -> Tensor:
        return torch.stack([transform(image) for image in images])

    def forward(pixels: Tensor) -> Tensor:
        embedded: Tensor = model.encode_image(pixels)
        return embedded

    settings = {key: str(value) for key, value in sorted(model.visual.preprocess_cfg.items())}
    visual = [name for name in model.state_dict() if name.startswith("visual.")]
    others = tuple({name.split(".")[0] for name in model.state_dict()} - {"visual"}) if visual else ()
    return ImageTower(model, prepare, forward, {"library": "open_clip", **settings, **options}, others)


def _transformers_tower(location: str) -> ImageTower:
    from cdkit.encoders.transformers import quietly

    local = Path(location).expanduser().is_dir()
    source = str(Path(location).expanduser()) if local else location
    try:
        with quietly():
            return _load_transformers(source, location)
    except CdkitError:
        raise
    except Exception as error:
        raise loading_error("transformers", location, local, error) from error


def _load_transformers(source: str, location: str) -> ImageTower:
    import_clip()
    import transformers

    config = transformers.AutoConfig.from_pretrained(source)
    kind = config.model_type
    facts = {"library": "transformers", "kind": kind}
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    if kind in ("clip", "clip_vision_model"):
        vision = getattr(config, "vision_config", config)
        vision.projection_dim = config.projection_dim
        model, report = transformers.CLIPVisionModelWithProjection.from_pretrained(source, config=vision, **options)
        tower = clip_picture_tower(model, _library_preparation(source, vision.image_size), facts)
    elif kind in ("siglip", "siglip_vision_model"):
        vision = getattr(config, "vision_config", config)
        model, report = transformers.SiglipVisionModel.from_pretrained(source, config=vision, **options)
        tower = ImageTower(
            model,
            _library_preparation(source, vision.image_size),
            lambda pixels: model(pixel_values=pixels).pooler_output,
            facts,
        )
    elif kind in CLASS_TOKEN_TYPES:
        model, report = transformers.AutoModel.from_pretrained(source, **options)
        tower = ImageTower(
            model,
            _class_token_preparation(source, config),
            lambda pixels: model(pixel_values=pixels).last_hidden_state[:, 0],
            {**facts, "pooling": "class token"},
            ("pooler.",),
        )
    else:
        raise ConfigError(
            f"{location} is a {kind!r} model, which is no image encoder that cdkit knows.",
            hint=f"CLIP, SigLIP and {', '.join(CLASS_TOKEN_TYPES[:4])} models are.",
        )
    missing = [name for name in report["missing_keys"] if "pooler.dense" not in name]
    if missing:
        raise InputError(
            f"{location} lacks {len(missing)} weights of its picture tower ({', '.join(sorted(missing)[:2])}, …).",
            hint="Give a model with its vision tower (CLIPModel or CLIPVisionModelWithProjection).",
        )
    return tower


def _library_preparation(source: str, side: int) -> Callable[[Sequence[Image.Image]], Tensor]:
    """The model's own image processor, or CLIP's at the tower's size where the folder has none."""
    import transformers

    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):
        sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        processor = transformers.CLIPImageProcessor(**sizes)

    def prepare(images: Sequence[Image.Image]) -> Tensor:
        pixels: Tensor = processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    return prepare


def _class_token_preparation(source: str, config: Any) -> Callable[[Sequence[Image.Image]], Tensor]:
    """DINO's evaluation crop, as CustomConcept101 uses it: short side to 8/7 of the input, the centre of that."""
    import transformers
    from torchvision import transforms

    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source)
        mean, deviation = tuple(processor.image_mean), tuple(processor.image_std)
        crop = getattr(processor, "crop_size", None)
        side = int(crop["height"]) if crop else int(config.image_size)
    except (OSError, ValueError, AttributeError):
        mean, deviation, side = IMAGENET_MEAN, IMAGENET_DEVIATION, int(config.image_size)
    transform = transforms.Compose(
        [
            transforms.Resize(round(side * 8 / 7), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
            transforms.ToTensor(),
            transforms.Normalize(mean, deviation),
        ]
    )

    def prepare(images: Sequence[Image.Image]) -> Tensor:
        return torch.stack([transform(image) for image in images])

    return prepare
