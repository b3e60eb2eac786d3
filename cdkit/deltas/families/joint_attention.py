"""Stable Diffusion 3 and 3.5, FLUX.1 and Qwen-Image: text and picture share one attention, each with its own keys and
values, and what the text's read is mixed with the picture after the first block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdkit.deltas.families.family import Family, entries, stated_number, text_width
from cdkit.deltas.families.stable_diffusion import CLIP_CONTEXT, CLIP_ENCODERS
from cdkit.deltas.text_features import TextFeatures, TextTower, ids_and_mask, on_devices, text_lengths

if TYPE_CHECKING:
    import torch

KEYS_AND_VALUES = r"^transformer_blocks\.\d+\.attn\.add_[kv]_proj\.weight$"
CROSS_ATTENTION = r"^transformer_blocks\.\d+\.attn\.(add_|to_add_out|norm_added)"
T5 = ("T5EncoderModel",)
# What Qwen-Image's pipeline puts prompts into, and how many of its tokens fall away.
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
DROPPED = 34
# What a guidance-distilled model is told while it trains: no guidance.
TRAINED_GUIDANCE = 1.0


@dataclass(frozen=True)
class JointAttention(Family):
    """What the three share."""

    def ids(self, towers: Sequence[TextTower], prompts: Sequence[str]) -> tuple[list[torch.Tensor], list[int]]:
        ids = [padded_ids(tower, prompts, self.context[tower.name]) for tower in towers]
        return ids, text_lengths(self.words_of(towers), self.seen(towers, ids))

    def taken_widths(self, denoiser: Mapping[str, Any]) -> set[int]:
        return {stated_number(denoiser, "joint_attention_dim", "transformer")}

    def example_text(self, denoiser: Mapping[str, Any], positions: int) -> TextFeatures:
        import torch

        (width,) = self.taken_widths(denoiser)
        hidden = torch.empty(1, positions, width, requires_grad=True)
        pooled = denoiser.get("pooled_projection_dim")
        return TextFeatures(hidden, None if pooled is None else torch.empty(1, int(pooled)))


def padded_ids(tower: TextTower, prompts: Sequence[str], length: int) -> torch.Tensor:
    """A tower's ids (prompts, length), padded and truncated."""
    batch = tower.tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    ids: torch.Tensor = batch.input_ids
    return ids


def text_length(tower: TextTower, ids: torch.Tensor) -> int:
    """How many of a row's ids are text with its end; CLIP pads with its end token."""
    ends = (ids == tower.tokenizer.eos_token_id).nonzero()
    return int(ends[0]) + 1 if len(ends) else len(ids)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents (n, C, h, w) as the patches of 2 x 2 cells that FLUX and Qwen-Image read: (n, h w / 4, 4 C)."""
    number, channels, height, width = latents.shape
    cells = latents.reshape(number, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(number, height * width // 4, channels * 4)


def unpack(patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The latents (n, C, height, width) of such patches."""
    number, _, channels = patches.shape
    cells = patches.reshape(number, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(number, channels // 4, height, width)


@dataclass(frozen=True)
class StableDiffusion3(JointAttention):
    """Stable Diffusion 3 and 3.5: two CLIPs side by side and, where it is there, T5 behind them."""

    def encode(self, towers: Sequence[TextTower], ids: Sequence[torch.Tensor]) -> TextFeatures:
        import torch
        from torch.nn.functional import pad

        rows = on_devices(towers, ids)
        outputs = [tower.model(row, output_hidden_states=True) for tower, row in zip(towers, rows, strict=True)]
        clip = torch.cat([output.hidden_states[-2] for output in outputs[:2]], dim=-1)
        pooled = torch.cat([output.text_embeds for output in outputs[:2]], dim=-1)
        if len(outputs) == 2:
            return TextFeatures(clip, pooled)
        long = outputs[2].last_hidden_state
        return TextFeatures(torch.cat([pad(clip, (0, long.shape[-1] - clip.shape[-1])), long], dim=1), pooled)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, features: TextFeatures, sizes: torch.Tensor
    ) -> torch.Tensor:
        from torch.nn.functional import pad

        hidden = features.hidden.to(noisy.dtype)
        missing = int(denoiser.config.joint_attention_dim) - hidden.shape[-1]
        if missing:  # Without T5, the pipeline puts zeros where its features would be.
            hidden = pad(hidden, (0, missing, 0, self.context["text_encoder_3"]))
        predicted: torch.Tensor = denoiser(
            hidden_states=noisy,
            timestep=times * 1000,
            encoder_hidden_states=hidden,
            pooled_projections=None if features.pooled is None else features.pooled.to(noisy.dtype),
            return_dict=False,
        )[0]
        return predicted

    def text_places(self, towers: Sequence[TextTower], ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        import torch

        long = self.context["text_encoder"]
        places = []
        for number in range(len(ids[0])):
            parts = [torch.arange(text_length(towers[0], ids[0][number]))]
            if len(towers) > 2:  # T5's features stand behind CLIP's.
                parts.append(long + torch.arange(text_length(towers[2], ids[2][number])))
            places.append(torch.cat(parts))
        return places

    def given_width(self, towers: Sequence[TextTower]) -> int | None:
        # Without T5, zeros make up for what CLIP's features lack.
        return text_width(towers[2].model.config) if len(towers) > 2 else None


@dataclass(frozen=True)
class Flux(JointAttention):
    """FLUX.1: T5's features are the text's stream, CLIP gives one vector of the whole prompt."""

    def encode(self, towers: Sequence[TextTower], ids: Sequence[torch.Tensor]) -> TextFeatures:
        clip, long = (tower.model(row) for tower, row in zip(towers, on_devices(towers, ids), strict=True))
        return TextFeatures(long.last_hidden_state, clip.pooler_output)

    def words_of(self, towers: Sequence[TextTower]) -> TextTower:
        return towers[1]

    def seen(self, towers: Sequence[TextTower], ids: Sequence[torch.Tensor]) -> torch.Tensor:
        return ids[1]

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, features: TextFeatures, sizes: torch.Tensor
    ) -> torch.Tensor:
        number, _, height, width = noisy.shape
        guidance = times.new_full((number,), TRAINED_GUIDANCE) if denoiser.config.guidance_embeds else None
        predicted = denoiser(
            hidden_states=pack(noisy),
            timestep=times.to(noisy.dtype),
            guidance=guidance,
            pooled_projections=None if features.pooled is None else features.pooled.to(noisy.dtype),
            encoder_hidden_states=features.hidden.to(noisy.dtype),
            txt_ids=noisy.new_zeros(features.hidden.shape[1], 3),
            img_ids=_places(height // 2, width // 2, noisy),
            return_dict=False,
        )[0]
        return unpack(predicted, height, width)

    def own_cells(self, denoiser: Mapping[str, Any]) -> int:
        return 128  # The pipeline's own; the transformer's configuration does not say.

    def draw_options(self, guidance: float, negative: Sequence[str] | None) -> dict[str, Any]:
        if negative is None:
            return {"guidance_scale": guidance}
        return {"true_cfg_scale": guidance, "negative_prompt": negative}


def _places(rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
    """The places (rows columns, 3) of a picture's patches: 0, row and column."""
    import torch

    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).to(like)


@dataclass(frozen=True)
class QwenImage(JointAttention):
    """Qwen-Image: a language model reads the prompt within a template, whose own features fall away."""

    def ids(self, towers: Sequence[TextTower], prompts: Sequence[str]) -> tuple[list[torch.Tensor], list[int]]:
        batch = towers[0].tokenizer(
            [TEMPLATE.format(prompt) for prompt in prompts],
            padding=True,
            padding_side="right",
            max_length=self.context["text_encoder"] + DROPPED,
            truncation=True,
            return_tensors="pt",
        )
        read = self.seen(towers, [batch.input_ids])
        return [batch.input_ids], text_lengths(towers[0], read)

    def seen(self, towers: Sequence[TextTower], ids: Sequence[torch.Tensor]) -> torch.Tensor:
        return ids[0][:, DROPPED:]

    def encode(self, towers: Sequence[TextTower], ids: Sequence[torch.Tensor]) -> TextFeatures:
        rows, mask = ids_and_mask(towers[0], ids[0])
        hidden = towers[0].model(input_ids=rows, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        mask = mask[:, DROPPED:]
        return TextFeatures(hidden[:, DROPPED:] * mask.unsqueeze(-1), mask=mask)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, features: TextFeatures, sizes: torch.Tensor
    ) -> torch.Tensor:
        number, _, height, width = noisy.shape
        predicted = denoiser(
            hidden_states=pack(noisy),
            timestep=times.to(noisy.dtype),
            encoder_hidden_states=features.hidden.to(noisy.dtype),
            encoder_hidden_states_mask=features.mask,
            img_shapes=[[(1, height // 2, width // 2)]] * number,
            return_dict=False,
        )[0]
        return unpack(predicted, height, width)

    def moments(self, vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        posterior = vae.encode(pixels.unsqueeze(2)).latent_dist  # a film of one picture
        mean, deviation = (
            torch.tensor(values, device=pixels.device).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return ((posterior.mean.float() - mean) / deviation)[:, :, 0], (posterior.std.float() / deviation)[:, :, 0]

    def factor(self, vae: Mapping[str, Any]) -> int:
        return int(2 ** entries(vae, "temperal_downsample"))

    def own_cells(self, denoiser: Mapping[str, Any]) -> int:
        return 128

    def latent_channels(self, vae: Mapping[str, Any]) -> int:
        return stated_number(vae, "z_dim", "autoencoder")

    def example_text(self, denoiser: Mapping[str, Any], positions: int) -> TextFeatures:
        import torch

        return TextFeatures(super().example_text(denoiser, positions).hidden, mask=torch.ones(1, positions).long())

    def draw_options(self, guidance: float, negative: Sequence[str] | None) -> dict[str, Any]:
        # Without a negative prompt the pipeline would not guide at all; one space is its authors' own.
        return {"true_cfg_scale": guidance, "negative_prompt": " " if negative is None else negative}


ROWS = (
    StableDiffusion3(
        name="Stable Diffusion 3 and 3.5",
        pipeline="StableDiffusion3Pipeline",
        index=r"StableDiffusion3(Img2Img|Inpaint)?Pipeline",
        denoiser="transformer",
        denoiser_class="SD3Transformer2DModel",
        autoencoder="AutoencoderKL",
        texts={"text_encoder": CLIP_ENCODERS, "text_encoder_2": CLIP_ENCODERS, "text_encoder_3": T5},
        context={"text_encoder": CLIP_CONTEXT, "text_encoder_2": CLIP_CONTEXT, "text_encoder_3": 256},
        keys_and_values=KEYS_AND_VALUES,
        cross_attention=CROSS_ATTENTION,
        optional=frozenset({"text_encoder_3"}),
        merge="sampled",
        flow=True,
        patch=2,
    ),
    Flux(
        name="FLUX.1",
        pipeline="FluxPipeline",
        index=r"Flux(Img2Img|Inpaint)?Pipeline",
        denoiser="transformer",
        denoiser_class="FluxTransformer2DModel",
        autoencoder="AutoencoderKL",
        texts={"text_encoder": CLIP_ENCODERS, "text_encoder_2": T5},
        context={"text_encoder": CLIP_CONTEXT, "text_encoder_2": 512},
        keys_and_values=KEYS_AND_VALUES,
        cross_attention=CROSS_ATTENTION,
        merge="sampled",
        flow=True,
        patch=2,
        packed=True,
    ),
    QwenImage(
        name="Qwen-Image",
        pipeline="QwenImagePipeline",
        index=r"QwenImagePipeline",
        denoiser="transformer",
        denoiser_class="QwenImageTransformer2DModel",
        autoencoder="AutoencoderKLQwenImage",
        texts={"text_encoder": ("Qwen2_5_VLForConditionalGeneration",)},
        context={"text_encoder": 1024},
        keys_and_values=KEYS_AND_VALUES,
        cross_attention=CROSS_ATTENTION,
        merge="sampled",
        flow=True,
        patch=2,
        packed=True,
    ),
)
