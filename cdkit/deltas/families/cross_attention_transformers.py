"""Sana and PixArt-Sigma: transformers whose cross-attention reads the projected caption, the same in every block."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdkit.deltas.families.family import Family, entries, stated_number
from cdkit.deltas.text_features import TextFeatures, TextTower, ids_and_mask, text_lengths

if TYPE_CHECKING:
    import torch

# Positions of a caption, start and end among them.
CONTEXT = 300
# What the sides of Sana's pictures must be multiples of.
SANA_STEP = 32
KEYS_AND_VALUES = r"transformer_blocks\.\d+\.attn2\.to_[kv]\.weight$"
CROSS_ATTENTION = r"transformer_blocks\.\d+\.attn2\."


@dataclass(frozen=True)
class CrossAttentionTransformer(Family):
    """What both share: one text encoder whose padding is masked, and a caption that is projected before the blocks."""

    @abstractmethod
    def called_with(self, denoiser: Any, times: torch.Tensor) -> dict[str, Any]:
        """What the denoiser takes besides latents and text."""

    def prefix(self) -> str:
        """What the pipeline puts before every prompt."""
        return ""

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, features: TextFeatures, sizes: torch.Tensor
    ) -> torch.Tensor:
        predicted: torch.Tensor = denoiser(
            noisy,
            encoder_hidden_states=features.hidden.to(noisy.dtype),
            encoder_attention_mask=features.mask,
            return_dict=False,
            **self.called_with(denoiser, times),
        )[0]
        # A variance may stand behind it.
        return predicted[:, : noisy.shape[1]]

    def written(self, text: str) -> str:
        return text.lower().strip()

    def ids(self, towers: Sequence[TextTower], prompts: Sequence[str]) -> tuple[list[torch.Tensor], list[int]]:
        tokenizer, prefix = towers[0].tokenizer, self.prefix()
        # Two of the prefix' tokens, start and end, are the whole text's.
        longest = CONTEXT if not prefix else len(tokenizer(prefix, verbose=False).input_ids) + CONTEXT - 2
        batch = tokenizer(
            [prefix + self.written(prompt) for prompt in prompts],
            padding="max_length",
            padding_side="right",
            max_length=longest,
            truncation=True,
            return_tensors="pt",
        )
        read = self.seen(towers, [batch.input_ids])
        return [batch.input_ids], text_lengths(towers[0], read)

    def seen(self, towers: Sequence[TextTower], ids: Sequence[torch.Tensor]) -> torch.Tensor:
        return _read_positions(ids[0])

    def encode(self, towers: Sequence[TextTower], ids: Sequence[torch.Tensor]) -> TextFeatures:
        rows, mask = ids_and_mask(towers[0], ids[0])
        hidden = towers[0].model(rows, attention_mask=mask)[0]
        return TextFeatures(_read_positions(hidden), mask=_read_positions(mask))

    def taken_widths(self, denoiser: Mapping[str, Any]) -> set[int]:
        return {stated_number(denoiser, "caption_channels", "transformer")}

    def example_text(self, denoiser: Mapping[str, Any], positions: int) -> TextFeatures:
        import torch

        (width,) = self.taken_widths(denoiser)
        hidden = torch.empty(1, positions, width, requires_grad=True)
        return TextFeatures(hidden, mask=torch.ones(1, positions, dtype=torch.long))

    def draw_options(self, guidance: float, negative: Sequence[str] | None) -> dict[str, Any]:
        # Binned, pictures would be drawn at another size and scaled.
        options = {"guidance_scale": guidance, "use_resolution_binning": False, "clean_caption": False}
        return options if negative is None else {**options, "negative_prompt": negative}


def _read_positions(values: torch.Tensor) -> torch.Tensor:
    """Of values (n, positions, …), those at the first position and at the last CONTEXT - 1: a prefix falls away."""
    import torch

    if values.shape[1] <= CONTEXT:
        return values
    return torch.cat([values[:, :1], values[:, 1 - CONTEXT :]], dim=1)


@dataclass(frozen=True)
class Sana(CrossAttentionTransformer):
    """Sana: Gemma reads the prompt behind a long instruction; the autoencoder has no spread; flow matching."""

    def prefix(self) -> str:
        import inspect

        from diffusers import SanaPipeline

        lines = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
        return "\n".join(lines or ())

    def read(self, denoiser: Any, features: TextFeatures) -> torch.Tensor:
        read: torch.Tensor = denoiser.caption_norm(denoiser.caption_projection(features.hidden))
        return read

    def called_with(self, denoiser: Any, times: torch.Tensor) -> dict[str, Any]:
        return {"timestep": times * 1000 * denoiser.config.timestep_scale}

    def moments(self, vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latent = vae.encode(pixels).latent.float() * vae.config.scaling_factor
        return latent, latent.new_zeros(()).expand_as(latent)

    def step(self, vae: Mapping[str, Any]) -> int:
        return math.lcm(SANA_STEP, self.factor(vae))

    def factor(self, vae: Mapping[str, Any]) -> int:
        return int(2 ** (entries(vae, "encoder_block_out_channels") - 1))


@dataclass(frozen=True)
class PixArt(CrossAttentionTransformer):
    """PixArt-Sigma: T5 reads the prompt; half of what is predicted is a variance that nothing here uses."""

    def read(self, denoiser: Any, features: TextFeatures) -> torch.Tensor:
        read: torch.Tensor = denoiser.caption_projection(features.hidden)
        return read

    def called_with(self, denoiser: Any, times: torch.Tensor) -> dict[str, Any]:
        return {"timestep": times, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


ROWS = (
    Sana(
        name="Sana",
        pipeline="SanaPipeline",
        index=r"SanaPipeline",
        denoiser="transformer",
        denoiser_class="SanaTransformer2DModel",
        autoencoder="AutoencoderDC",
        texts={"text_encoder": ("Gemma2Model", "Gemma2ForCausalLM")},
        context={"text_encoder": CONTEXT},
        keys_and_values=KEYS_AND_VALUES,
        cross_attention=CROSS_ATTENTION,
        flow=True,
        starts_alike=True,
        masks_padding=True,
    ),
    PixArt(
        name="PixArt-Sigma",
        pipeline="PixArtSigmaPipeline",
        index=r"PixArtSigmaPipeline",
        denoiser="transformer",
        denoiser_class="PixArtTransformer2DModel",
        autoencoder="AutoencoderKL",
        texts={"text_encoder": ("T5EncoderModel",)},
        context={"text_encoder": CONTEXT},
        keys_and_values=KEYS_AND_VALUES,
        cross_attention=CROSS_ATTENTION,
        patch=2,
        reads_lora=False,
        causal=False,
        masks_padding=True,
        call="clean_caption=False",
    ),
)
