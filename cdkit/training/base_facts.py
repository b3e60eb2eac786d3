"""What a base model is, read from its configuration files before its weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.errors import ConfigError, InputError
from cdkit.inputs import EMBEDDED
from cdkit.storage import read_json
from cdkit.weights.text_features import TOWERS, text_towers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

UNET, AUTOENCODER = "UNet2DConditionModel", "AutoencoderKL"
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")


@dataclass(frozen=True)
class BaseFacts:
    """The resolution a base model was made for, its pixels per latent cell, its tokenizers by text encoder."""

    resolution: int
    factor: int
    tokenizers: Mapping[str, Any]

    def resolution_or(self, asked: int | None) -> int:
        """The resolution to train at; raises ConfigError for one that does not divide into latent cells."""
        if asked is None:
            return self.resolution
        if asked % self.factor:
            raise ConfigError(
                f"The resolution {asked} is no multiple of {self.factor}, the pixels of a latent cell.",
                hint=f"Use {max(1, round(asked / self.factor)) * self.factor}; {self.resolution} is the model's own.",
            )
        return asked


def facts_of_files(base: str) -> BaseFacts | None:
    """The facts of `embedded` or of a pipeline's folder; None for a hub id, or for a folder that is no pipeline.

    Raises ConfigError for a pipeline of another family.
    """
    if base == EMBEDDED:
        from cdkit.embedded.architecture import LATENT_SIZE, PICTURE_SIZE
        from cdkit.embedded.tokens import load_tokenizer

        return BaseFacts(PICTURE_SIZE, PICTURE_SIZE // LATENT_SIZE, {TOWERS[0]: load_tokenizer()})
    folder = Path(base).expanduser()
    names = [folder / "model_index.json", folder / "unet" / "config.json", folder / "vae" / "config.json"]
    if not names[0].is_file():
        return None
    index = read_json(names[0])
    classes = {name: value[1] for name, value in index.items() if isinstance(value, list) and value[1:] != [None]}
    _check_family(base, classes)
    tokenizers = {tower: _tokenizer(folder / _tokenizer_name(tower)) for tower in TOWERS if classes.get(tower)}
    return _facts(base, read_json(names[1]), read_json(names[2]), tokenizers)


def facts_of_pipeline(base: str, pipeline: DiffusionPipeline) -> BaseFacts:
    """The facts of a loaded pipeline; raises ConfigError for one of another family."""
    _check_family(
        base,
        {name: type(part).__name__ for name, part in pipeline.components.items() if part is not None},
    )
    tokenizers = {tower.name: tower.tokenizer for tower in text_towers(pipeline)}
    return _facts(base, pipeline.unet.config, pipeline.vae.config, tokenizers)


def _tokenizer_name(tower: str) -> str:
    return tower.replace("text_encoder", "tokenizer")


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # every backend has its own; all mean that the files cannot be used
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"The tokenizer in {folder} cannot be loaded: {first}", hint="A file may be missing or truncated."
        ) from error


def _check_family(base: str, classes: Mapping[str, Any]) -> None:
    fits = (
        classes.get("unet") == UNET
        and classes.get("vae") == AUTOENCODER
        and classes.get("text_encoder") in TEXT_ENCODERS
        and classes.get("text_encoder_2") in (*TEXT_ENCODERS, None)
    )
    if not fits:
        shown = ", ".join(f"{name} {classes[name]}" for name in ("unet", "transformer", "vae") if classes.get(name))
        raise ConfigError(
            f"{base} is a model of another family ({shown or 'no U-Net'}).",
            hint="Training takes Stable Diffusion 1, 2 and XL pipelines: CLIP text encoder, U-Net, AutoencoderKL.",
        )


def _facts(base: str, unet: Mapping[str, Any], vae: Mapping[str, Any], tokenizers: Mapping[str, Any]) -> BaseFacts:
    if unet["in_channels"] != vae["latent_channels"]:
        raise ConfigError(
            f"The U-Net of {base} takes {unet['in_channels']} channels and its latents have {vae['latent_channels']}: "
            "it is an inpainting or image-editing model.",
            hint="Give the text-to-image model it was made from.",
        )
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return BaseFacts(int(unet["sample_size"]) * factor, factor, tokenizers)
