"""A family of text-to-image models: the parts of its pipelines, what of them text alone feeds, how they are called."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cdkit.core.errors import InputError
from cdkit.deltas.text_features import TextFeatures, TextTower, encode_ids, ids_and_lengths

if TYPE_CHECKING:
    import torch

# Pipelines of diffusers refuse sides that are no multiple of 8, whatever the autoencoder.
PIPELINE_STEP = 8
TRANSFORMER_BLOCK = r"transformer_blocks\.(\d+)\."


@dataclass(frozen=True)
class Family(ABC):
    """One family. What differs from one to the next are these values and the methods that a row overrides.

    name: for people. pipeline: diffusers' class that draws with it. index: a regular expression for what an index may
    call such a pipeline. denoiser: the part that trains, and denoiser_class its class. texts: the classes that each
    text encoder may have; optional: text encoders that may be missing. context: positions that a text encoder reads
    of a prompt. keys_and_values, cross_attention: regular expressions for parameter names of the denoiser that text
    alone feeds. merge: `exact` where what they read comes from the text alone, `sampled` where it is mixed with the
    picture. flow: whether it learns flow matching instead of noise. starts_alike: whether every prompt's first
    position holds the same. patch: latent cells that one position of the denoiser covers per side. packed: whether
    the denoiser's channels are those of a patch of 2 x 2 cells. reads_lora: whether diffusers loads a LoRA
    into such a pipeline. causal: whether a word's features depend on what stands before it alone. masks_padding:
    whether nothing reads what stands behind a prompt. call: what the pipeline must be called with, or words in angle
    brackets are cut out of prompts.
    """

    name: str
    pipeline: str
    index: str
    denoiser: Literal["unet", "transformer"]
    denoiser_class: str
    autoencoder: str
    texts: Mapping[str, tuple[str, ...]]
    context: Mapping[str, int]
    keys_and_values: str
    cross_attention: str
    optional: frozenset[str] = frozenset()
    merge: Literal["exact", "sampled"] = "exact"
    flow: bool = False
    starts_alike: bool = False
    patch: int = 1
    packed: bool = False
    reads_lora: bool = True
    causal: bool = True
    masks_padding: bool = False
    call: str = ""

    def written(self, text: str) -> str:
        """What the pipeline makes of a text before its tokenizers read it."""
        return text

    def ids(self, towers: Sequence[TextTower], prompts: Sequence[str]) -> tuple[list[torch.Tensor], list[int]]:
        """Per tower the prompts' ids (prompts, positions), and each prompt's length in the tower of the words."""
        return ids_and_lengths(towers, prompts)

    def encode(self, towers: Sequence[TextTower], ids: Sequence[torch.Tensor]) -> TextFeatures:
        """Features of the ids of `ids`, differentiable."""
        return encode_ids(towers, ids)

    def words_of(self, towers: Sequence[TextTower]) -> TextTower:
        """The tower whose words stand at the positions that keys and values read."""
        return towers[0]

    def seen(self, towers: Sequence[TextTower], ids: Sequence[torch.Tensor]) -> torch.Tensor:
        """The ids (prompts, positions) at the positions of the features."""
        return ids[0]

    def text_places(self, towers: Sequence[TextTower], ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Per prompt the positions of the features that hold its text, not what pads it."""
        import torch

        pad = self.words_of(towers).tokenizer.pad_token_id
        return [torch.nonzero(row != pad)[:, 0] for row in self.seen(towers, ids)]

    def read(self, denoiser: Any, features: TextFeatures) -> torch.Tensor:
        """What keys and values read of the text (prompts, positions, width), where that is the text alone."""
        return features.hidden

    @abstractmethod
    def predict(
        self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, features: TextFeatures, sizes: torch.Tensor
    ) -> torch.Tensor:
        """What the denoiser says of noisy latents (n, C, h, w): noise, velocity, or flow, of the same shape.

        times (n,): timesteps; with flow matching the share of noise, 0 to 1. sizes (n, 6): see training's Batch.
        """

    def moments(self, vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation (n, C, h, w), fp32, of the scaled latents of pictures (n, 3, s, s) in [-1, 1]."""
        posterior = vae.encode(pixels).latent_dist
        scale, shift = vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    def factor(self, vae: Mapping[str, Any]) -> int:
        """Pixels per latent cell, by the autoencoder's configuration. Raises InputError for a broken one."""
        # An autoencoder halves between its blocks.
        return int(2 ** (entries(vae, "block_out_channels") - 1))

    def step(self, vae: Mapping[str, Any]) -> int:
        """What a picture's sides must be multiples of."""
        return math.lcm(PIPELINE_STEP, self.factor(vae) * self.patch)

    def own_cells(self, denoiser: Mapping[str, Any]) -> int:
        """Latent cells per side that the model was made for. Raises InputError for a broken configuration."""
        size = denoiser.get("sample_size")
        side = size[0] if isinstance(size, list | tuple) and size else size
        if not isinstance(side, int) or side < 1:
            raise InputError(f"The {self.denoiser}'s config.json has no sample_size.", hint="Copy the model again.")
        return side

    def latent_channels(self, vae: Mapping[str, Any]) -> int:
        """Channels of a latent cell, by the autoencoder's configuration."""
        return stated_number(vae, "latent_channels", "autoencoder")

    def taken_channels(self, denoiser: Mapping[str, Any]) -> int:
        """Channels of a latent cell that the denoiser takes."""
        return int(denoiser.get("in_channels", 0)) // (4 if self.packed else 1)

    @abstractmethod
    def taken_widths(self, denoiser: Mapping[str, Any]) -> set[int]:
        """Widths of the text features that the denoiser takes."""

    def given_width(self, towers: Sequence[TextTower]) -> int | None:
        """The width of the text features that the text encoders give; None where any would do."""
        return text_width(self.words_of(towers).model.config)

    @abstractmethod
    def example_text(self, denoiser: Mapping[str, Any], positions: int) -> TextFeatures:
        """Features without data (of torch's current device) of one prompt, for counting what a run takes."""

    def draw_options(self, guidance: float, negative: Sequence[str] | None) -> dict[str, Any]:
        """What the pipeline's call takes for guidance and the negative prompts."""
        return {"guidance_scale": guidance, "negative_prompt": negative}


def entries(vae: Mapping[str, Any], name: str) -> int:
    """How many entries a list of an autoencoder's configuration has; raises InputError where there is none."""
    values = vae.get(name)
    if not isinstance(values, list | tuple) or not values:
        raise InputError(f"The autoencoder's config.json has no {name}.", hint="Copy the model again.")
    return len(values)


def stated_number(config: Mapping[str, Any], name: str, part: str) -> int:
    """A number that a part's configuration must state; raises InputError where it does not."""
    value = config.get(name)
    if not isinstance(value, int):
        raise InputError(f"The {part}'s config.json has no {name}.", hint="Copy the model again.")
    return value


def text_width(config: Any) -> int:
    """The width of a text encoder's features: CLIP's, T5's or a language model's."""
    for holder in (config, getattr(config, "text_config", None)):
        for name in ("hidden_size", "d_model"):
            if isinstance(getattr(holder, name, None), int):
                return int(getattr(holder, name))
    raise InputError("A text encoder's config.json has no hidden_size.", hint="Copy the model again.")
