"""Denoising: the losses of a batch, with text conditioning computed once where nothing in it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from cdkit.deltas.families.family import Family
from cdkit.deltas.families.table import denoiser_of
from cdkit.deltas.text_features import TextFeatures, TextTower
from cdkit.training.batches import Batch
from cdkit.training.loss import masked_error
from cdkit.training.processes import send
from cdkit.training.schedule import Schedule, schedule_of
from cdkit.training.trainables import RowsBesideTable, Trainables

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cdkit.deltas.formats.gated_pipeline import Gate


ENCODED_AT_ONCE = 64


@dataclass
class Denoising:
    """A denoiser that computes in `dtype`, with its noise schedule, both on one device.

    distilled: what trains of the denoiser, where the base model's own predictions are asked for. gate: what changes
    keys and values where the concepts' words stand alone.
    """

    denoiser: Any
    conditioning: Conditioning
    schedule: Schedule
    dtype: torch.dtype = torch.float32
    distilled: Trainables | None = None
    gate: Gate | None = None

    @classmethod
    def of(
        cls,
        pipeline: DiffusionPipeline,
        conditioning: Conditioning,
        cells: int,
        dtype: torch.dtype,
        distilled: Trainables | None = None,
        gate: Gate | None = None,
    ) -> Denoising:
        """With the noise schedule that the pipeline's own scheduler was made for. cells: latent cells per side."""
        denoiser = denoiser_of(pipeline)
        device = next(denoiser.parameters()).device
        schedule = schedule_of(pipeline.scheduler, conditioning.family, cells, device)
        return cls(denoiser, conditioning, schedule, dtype, distilled, gate)

    def completed(self, batch: Batch) -> Batch:
        """The batch with what only the model can say: where words stand, what the base model itself predicts."""
        if self.gate is not None:
            batch = replace(batch, gated=self.gate.places(self.conditioning.ids(batch.prompts)))
        return batch if self.distilled is None else self._asked_of_base(batch, self.distilled)

    def _asked_of_base(self, batch: Batch, distilled: Trainables) -> Batch:
        """The batch with the base model's predictions of what is distilled.

        Every batch of a run that distils has its wanted predictions, so that all are recorded alike.
        """
        noisy, wanted = self.schedule.noised(batch.latents, batch.noise, batch.timesteps)
        wanted = wanted.clone()
        if batch.distilled:
            places = send(torch.tensor(batch.distilled), wanted.device)
            features = self.conditioning.features([batch.prompts[place] for place in batch.distilled])
            asked = noisy[places], batch.timesteps[places], features, batch.sizes[places]
            with torch.no_grad(), distilled.as_before():
                wanted[places] = self._predict(*asked).float()
        return replace(batch, wanted=wanted)

    def losses(self, batch: Batch) -> torch.Tensor:
        """One loss per sample (n,), before weights; differentiable."""
        return self.losses_given(self.conditioning.features(batch.prompts), batch)

    def losses_given(self, features: TextFeatures, batch: Batch) -> torch.Tensor:
        """The same with the features of the batch's prompts given: from here on all is tensors of fixed shapes."""
        noisy, wanted = self.schedule.noised(batch.latents, batch.noise, batch.timesteps)
        if self.gate is not None:
            self.gate.mask = batch.gated
        prediction = self._predict(noisy, batch.timesteps, features, batch.sizes)
        return masked_error(prediction, wanted if batch.wanted is None else batch.wanted, batch.mask)

    def _predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, features: TextFeatures, sizes: torch.Tensor
    ) -> torch.Tensor:
        times = self.schedule.times(timesteps)
        return self.conditioning.family.predict(self.denoiser, noisy.to(self.dtype), times, features, sizes)


@dataclass
class Conditioning:
    """Features of prompts. rows: the modifier tokens that train, by tower; prompts that hold one are never kept."""

    family: Family
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
        ids = self.family.ids(self.towers, distinct)[0]
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

    def ids(self, prompts: Sequence[str]) -> torch.Tensor:
        """The first tower's ids (n, positions) of prepared prompts."""
        return torch.stack([self._ids[prompt][0] for prompt in prompts])

    def _encode(self, prompts: Sequence[str]) -> TextFeatures:
        columns = zip(*(self._ids[prompt] for prompt in prompts), strict=True)
        return self.family.encode(self.towers, [torch.stack(column) for column in columns])


def _joined(parts: Sequence[TextFeatures]) -> TextFeatures:
    if len(parts) == 1:
        return parts[0]
    pooled = [part.pooled for part in parts if part.pooled is not None]
    masks = [part.mask for part in parts if part.mask is not None]
    hidden = torch.cat([part.hidden for part in parts])
    return TextFeatures(hidden, torch.cat(pooled) if pooled else None, torch.cat(masks) if masks else None)


def _picked(features: TextFeatures, places: Sequence[int]) -> TextFeatures:
    chosen = send(torch.tensor(places), features.hidden.device)
    pooled, mask = (None if part is None else part[chosen] for part in (features.pooled, features.mask))
    return TextFeatures(features.hidden[chosen], pooled, mask)
