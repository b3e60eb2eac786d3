"""Stable Diffusion 1, 2 and XL: a U-Net with cross-attention over CLIP's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdkit.deltas.families.family import Family, stated_number
from cdkit.deltas.text_features import TextFeatures, TextTower

if TYPE_CHECKING:
    import torch

CLIP_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
CLIP_CONTEXT = 77


@dataclass(frozen=True)
class StableDiffusion(Family):
    """The U-Nets: conditions come as `encoder_hidden_states`, SDXL's pooled text and sizes beside them."""

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, features: TextFeatures, sizes: torch.Tensor
    ) -> torch.Tensor:
        """The noise or velocity; SDXL also reads the sizes (Podell et al. 2023, section 2.2)."""
        added = None if features.pooled is None else {"text_embeds": features.pooled, "time_ids": sizes.float()}
        prediction: torch.Tensor = denoiser(
            noisy, times, encoder_hidden_states=features.hidden, added_cond_kwargs=added
        ).sample
        return prediction

    def taken_widths(self, denoiser: Mapping[str, Any]) -> set[int]:
        widths = denoiser.get("cross_attention_dim")
        if isinstance(widths, list | tuple):
            return set(widths)
        return {stated_number(denoiser, "cross_attention_dim", "U-Net")}

    def given_width(self, towers: Sequence[TextTower]) -> int | None:
        return sum(int(tower.model.config.hidden_size) for tower in towers)

    def example_text(self, denoiser: Mapping[str, Any], positions: int) -> TextFeatures:
        import torch

        # A token that trains makes the text itself need a gradient, whatever of the U-Net trains.
        text = torch.empty(1, positions, min(self.taken_widths(denoiser)), requires_grad=True)
        if denoiser.get("addition_embed_type") != "text_time":
            return TextFeatures(text)
        pooled = denoiser["projection_class_embeddings_input_dim"] - 6 * denoiser["addition_time_embed_dim"]
        return TextFeatures(text, torch.empty(1, pooled))


def _row(name: str, pipeline: str, index: str, *towers: str) -> StableDiffusion:
    return StableDiffusion(
        name=name,
        pipeline=pipeline,
        index=index,
        denoiser="unet",
        denoiser_class="UNet2DConditionModel",
        autoencoder="AutoencoderKL",
        texts=dict.fromkeys(towers, CLIP_ENCODERS),
        context=dict.fromkeys(towers, CLIP_CONTEXT),
        keys_and_values=r"\.attn2\.to_[kv]\.weight$",
        cross_attention=r"\.attn2\.",
        starts_alike=True,
    )


ROWS = (
    _row(
        "Stable Diffusion 1 and 2",
        "StableDiffusionPipeline",
        r"StableDiffusion(Img2Img|Inpaint)?Pipeline",
        "text_encoder",
    ),
    _row(
        "Stable Diffusion XL",
        "StableDiffusionXLPipeline",
        r"StableDiffusionXL(Img2Img|Inpaint)?Pipeline",
        "text_encoder",
        "text_encoder_2",
    ),
)
