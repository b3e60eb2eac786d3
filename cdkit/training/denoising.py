"""Denoising: the losses of a batch, with text conditioning computed once where nothing in it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from cdkit.deltas.text_features import TextFeatures, TextTower, encode_ids, token_ids
from cdkit.training.batches import Batch
from cdkit.training.loss import add_noise, masked_error, wanted_prediction
from cdkit.training.processes import send
from cdkit.training.trainables import RowsBesideTable

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


ENCODED_AT_ONCE = 64


@dataclass
class Denoising:
    """A U-Net with its noise schedule. alphas_cumprod: (timesteps,) on the U-Net's device."""

    unet: Any
    conditioning: Conditioning
    alphas_cumprod: torch.Tensor
    prediction_type: str

    @classmethod
    def of(cls, pipeline: DiffusionPipeline, conditioning: Conditioning, device: torch.device) -> Denoising:
        """With the noise schedule that the pipeline's own scheduler was made for."""
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        alphas_cumprod = scheduler.alphas_cumprod.to(device)
        return cls(pipeline.unet, conditioning, alphas_cumprod, scheduler.config.prediction_type)

    def losses(self, batch: Batch) -> torch.Tensor:
        """One loss per sample (n,), before weights; differentiable."""
        return self.losses_given(self.conditioning.features(batch.prompts), batch)

    def losses_given(self, features: TextFeatures, batch: Batch) -> torch.Tensor:
        """The same with the features of the batch's prompts given: from here on all is tensors of fixed shapes."""
        noisy = add_noise(batch.latents, batch.noise, batch.timesteps, self.alphas_cumprod)
        wanted = wanted_prediction(
            batch.latents, batch.noise, batch.timesteps, self.alphas_cumprod, self.prediction_type
        )
        prediction = self.unet(
            noisy.to(self.unet.conv_in.weight.dtype),
            batch.timesteps,
            encoder_hidden_states=features.hidden,
            added_cond_kwargs=_added_conditions(features, batch),
        ).sample
        return masked_error(prediction, wanted, batch.mask)


def _added_conditions(features: TextFeatures, batch: Batch) -> dict[str, torch.Tensor] | None:
    """SDXL's: the pooled text and the sizes (Podell et al. 2023, section 2.2)."""
    if features.pooled is None:
        return None
    return {"text_embeds": features.pooled, "time_ids": batch.sizes.float()}


@dataclass
class Conditioning:
    """Features of prompts. rows: the modifier tokens that train, by tower; prompts that hold one are never kept."""

    towers: Sequence[TextTower]
    rows: Mapping[str, RowsBesideTable]
    _ids: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    _place: dict[str, int] = field(default_factory=dict)
    _kept: TextFeatures | None = None

    def prepare(self, prompts: Sequence[str]) -> None:
        """Tokenise all prompts that will occur, and encode those that hold no trained token.

        When no prompt holds one, the towers leave the device: they are not needed any more.
        """
        distinct = list(dict.fromkeys(prompts))
        ids = token_ids(self.towers, distinct)
        trained = self._trained(ids[0])
        # On the device from now on, so that no step waits for them.
        ids = [row.to(next(tower.model.parameters()).device) for tower, row in zip(self.towers, ids, strict=True)]
        self._ids = {prompt: [row[index] for row in ids] for index, prompt in enumerate(distinct)}
        lasting = [prompt for prompt, is_trained in zip(distinct, trained, strict=True) if not is_trained]
        self._place = {prompt: index for index, prompt in enumerate(lasting)}
        parts = []
        with torch.no_grad():
            for start in range(0, len(lasting), ENCODED_AT_ONCE):
                parts.append(self._encode(lasting[start : start + ENCODED_AT_ONCE]))
        self._kept = _joined(parts) if parts else None
        if len(lasting) == len(distinct):
            for tower in self.towers:
                tower.model.to("cpu")

    def _trained(self, ids: torch.Tensor) -> list[bool]:
        """Which prompts (n,) of the first tower's ids (n, positions) hold a modifier token that trains."""
        new = next(iter(self.rows.values())).ids.cpu() if self.rows else torch.tensor([], dtype=torch.long)
        return [bool(holds) for holds in torch.isin(ids, new).any(dim=1)]

    def features(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of a batch of prepared prompts; a prompt that occurs several times is encoded once."""
        distinct = list(dict.fromkeys(prompts))
        kept = [prompt for prompt in distinct if prompt in self._place]
        live = [prompt for prompt in distinct if prompt not in self._place]
        parts = []
        if kept and self._kept is not None:
            parts.append(_picked(self._kept, [self._place[prompt] for prompt in kept]))
        if live:
            parts.append(self._encode(live))
        order = {prompt: index for index, prompt in enumerate([*kept, *live])}
        return _picked(_joined(parts), [order[prompt] for prompt in prompts])

    def _encode(self, prompts: Sequence[str]) -> TextFeatures:
        columns = zip(*(self._ids[prompt] for prompt in prompts), strict=True)
        return encode_ids(self.towers, [torch.stack(column) for column in columns])


def _joined(parts: Sequence[TextFeatures]) -> TextFeatures:
    if len(parts) == 1:
        return parts[0]
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return TextFeatures(torch.cat([part.hidden for part in parts]), torch.cat(pooled) if pooled else None)


def _picked(features: TextFeatures, places: Sequence[int]) -> TextFeatures:
    chosen = send(torch.tensor(places), features.hidden.device)
    return TextFeatures(features.hidden[chosen], None if features.pooled is None else features.pooled[chosen])
