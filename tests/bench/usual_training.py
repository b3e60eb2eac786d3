"""The usual way to train Custom Diffusion with diffusers, to measure against: nothing is computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cdkit.training.augmentation import draw_placement, place, valid_region, with_words
from cdkit.training.batches import Order, sample_generator
from cdkit.training.loss import add_noise, masked_error, wanted_prediction


class UsualTraining:
    """diffusers' attention processors as trainable copies, on the photos and images of a plan; one step at a time."""

    def __init__(self, pipeline: Any, plan: Any, batches: Any, accelerator: Any, learning_rate: float = 8e-5) -> None:
        from diffusers import DDPMScheduler
        from diffusers.loaders import AttnProcsLayers

        self.pipeline, self.plan, self.batches, self.accelerator = pipeline, plan, batches, accelerator
        self.device = accelerator.device
        (planned,) = plan.concepts
        side = plan.resolution
        self.photos = [square.pixels.to(self.device) for square in planned.squares]
        self.images = [_resized(picture.open(), side).to(self.device) for picture in planned.regularization]
        self.captions = [forms[0] for forms in planned.captions]
        self.image_captions = planned.regularization_captions
        self.order = Order([len(self.photos)], [len(self.images)], batches.seed)
        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.alphas, self.kind = scheduler.alphas_cumprod.to(self.device), scheduler.config.prediction_type
        half = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        pipeline.unet.requires_grad_(False).to(half)
        pipeline.vae.requires_grad_(False).to(half)
        pipeline.unet.set_attn_processor(_processors(pipeline.unet, self.device))
        layers = AttnProcsLayers(pipeline.unet.attn_processors)
        self.table = self._with_token(plan.tokens[0].text)
        self.trained = [self.table, *(p for p in layers.parameters() if p.requires_grad)]
        self.optimizer = torch.optim.AdamW(self.trained, lr=learning_rate)

    def _with_token(self, token: str) -> nn.Parameter:
        tokenizer, text = self.pipeline.tokenizer, self.pipeline.text_encoder
        tokenizer.add_tokens([token])
        text.resize_token_embeddings(len(tokenizer))
        text.requires_grad_(False)
        table: nn.Parameter = text.get_input_embeddings().weight.requires_grad_(True)
        self.other_rows = torch.arange(len(table), device=self.device) != tokenizer.convert_tokens_to_ids(token)
        return table

    def step(self, step: int) -> None:
        """One optimizer step."""
        size, count = self.plan.resolution, self.batches.samples_per_step
        pixels, prompts, masks = [], [], []
        for sample in range(count):
            rng = sample_generator(self.batches.seed, step, sample)
            choice = self.order.choice(step * count + sample)
            mask = torch.ones(1, self.batches.cells, self.batches.cells)
            if choice.is_regularization:
                pixels.append(self.images[choice.item])
                prompts.append(self.image_captions[choice.item])
            else:
                placement = draw_placement(rng, size)
                pixels.append(place(self.photos[choice.item], placement, size))
                prompts.append(with_words(placement.words, self.captions[choice.item]))
                mask = valid_region(placement, size, self.batches.cells)
            masks.append(mask)
        with self.accelerator.autocast():
            loss = self._loss(torch.stack(pixels), prompts, torch.stack(masks).to(self.device))
        self.accelerator.backward(loss)
        assert self.table.grad is not None
        self.table.grad[self.other_rows] = 0
        self.accelerator.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _loss(self, pixels: torch.Tensor, prompts: list[str], mask: torch.Tensor) -> torch.Tensor:
        vae, unet, tokenizer = self.pipeline.vae, self.pipeline.unet, self.pipeline.tokenizer
        latents = vae.encode(pixels.to(vae.dtype)).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        times = torch.randint(0, len(self.alphas), (len(latents),), device=self.device)
        ids = tokenizer(
            prompts, truncation=True, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
        ).input_ids.to(self.device)
        text = self.pipeline.text_encoder(ids)[0]
        noisy = add_noise(latents, noise, times, self.alphas).to(latents.dtype)
        prediction = unet(noisy, times, text).sample
        return masked_error(prediction, wanted_prediction(latents, noise, times, self.alphas, self.kind), mask).mean()


def _processors(unet: Any, device: torch.device) -> dict[str, Any]:
    from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0

    weights, found = unet.state_dict(), {}
    for name in unet.attn_processors:
        layer = name.removesuffix(".processor")
        if name.endswith("attn1.processor"):
            found[name] = CustomDiffusionAttnProcessor2_0(train_kv=False, train_q_out=False)
            continue
        key, value = weights[f"{layer}.to_k.weight"], weights[f"{layer}.to_v.weight"]
        found[name] = CustomDiffusionAttnProcessor2_0(
            train_kv=True, train_q_out=False, hidden_size=key.shape[0], cross_attention_dim=key.shape[1]
        ).to(device)
        found[name].load_state_dict(
            {"to_k_custom_diffusion.weight": key.float(), "to_v_custom_diffusion.weight": value.float()}
        )
    return found


def _resized(image: Any, side: int) -> torch.Tensor:
    import numpy as np

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().unsqueeze(0) / 127.5 - 1
    return functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)[0]
