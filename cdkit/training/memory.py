"""How much memory a training takes, estimated from the base model's configuration before its weights are read.

Weights, gradients and optimizer states are counted; activations are what autograd keeps of one sample, found by
running the denoiser without data (torch's meta device). Kernels' workspaces are not known: the total is rough.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from cdkit.core.formatting import json_text
from cdkit.core.startup import import_pipelines
from cdkit.deltas.base_model import compute_type
from cdkit.deltas.families.family import Family
from cdkit.deltas.families.table import family_named
from cdkit.deltas.methods import METHODS, selected_names
from cdkit.deltas.pipeline_folder import library_errors
from cdkit.training.base_facts import BaseFacts
from cdkit.training.batches import encoded_together
from cdkit.training.latents import DECODING
from cdkit.training.plan import Plan

if TYPE_CHECKING:
    from cdkit.training.config import TrainConfig

FP32 = 4
GIB = 1 << 30
# In half precision all but the loss is half.
HALF_ACTIVATIONS = 0.5
# While a checkpointed block is run again, its own activations are there: those of the largest block.
LARGEST_BLOCK = 0.3
# Feature maps of the first width that an autoencoder holds at once: input, norm, activation, output.
ENCODER_MAPS = 4
# What autograd keeps of one transformer layer of CLIP per position, in hidden widths: norms, attention, activation.
CLIP_LAYER_WIDTHS = 16
# What CUDA itself, its libraries' kernels and workspaces take.
CUDA_BYTES = int(0.7 * GIB)
# Positions of a prompt that are counted where a family's text encoders read more: few prompts are longer.
POSITIONS = 300


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they are for. together: whether activations and encoding are there at the same time, because a
    CUDA graph keeps what it has."""

    frozen_weights: int
    trained_weights: int
    gradients: int
    optimizer: int
    activations: int
    encoding: int
    overhead: int = 0
    together: bool = False

    @property
    def passing(self) -> int:
        """What a step takes beside weights, gradients and optimizer."""
        return self.activations + self.encoding if self.together else max(self.activations, self.encoding)

    @property
    def certain(self) -> int:
        """What is there whatever the batch: it follows from numbers of parameters alone."""
        return self.frozen_weights + self.trained_weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return self.certain + self.passing + self.overhead

    def sentence(self) -> str:
        """The total and what it is made of."""
        weights = self.frozen_weights + self.trained_weights
        return (
            f"{gigabytes(self.total)}: weights {gigabytes(weights)}, gradients {gigabytes(self.gradients)}, "
            f"optimizer {gigabytes(self.optimizer)}, "
            f"activations {gigabytes(self.passing)}"
        )

    def as_json(self) -> dict[str, int]:
        return {
            "weights": self.frozen_weights + self.trained_weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.passing,
            "total": self.total,
        }


def gigabytes(number: int) -> str:
    """`3.9 GiB`."""
    return f"{number / GIB:.1f} GiB" if number >= GIB / 10 else f"{number / (1 << 20):.0f} MiB"


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes of a device; None where that is not known."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    if device.type == "mps":
        limit = int(torch.mps.recommended_max_memory())
        return limit - int(torch.mps.current_allocated_memory()), limit
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return sizes.get("MemAvailable", 0), sizes["MemTotal"]


@library_errors("The base model's configuration")
def estimate_memory(config: TrainConfig, plan: Plan, facts: BaseFacts, device: torch.device) -> MemoryEstimate:
    """Estimate one process' memory on its device."""
    recipe = config.recipe()
    run = _denoiser_run(config, plan, facts)
    trained = run.trained
    rows = sum(len(plan.tokens) * _layers(text)[0] for _, text in facts.texts.values())
    frozen = run.parameters - trained
    size = torch.empty(0, dtype=compute_type(config.precision)).element_size()
    if plan.tokens:
        frozen += sum(_text_parameters(kind, text) for kind, text in facts.texts.values())
    vae = _autoencoder_parameters(facts, whole=device.type == "cpu")
    frozen += vae if recipe.augmentation else 0
    # On a CPU the copy that the changes are measured from lies beside what trains, and so does the released VAE.
    beside = (trained * FP32 + (0 if recipe.augmentation else vae * FP32)) if device.type == "cpu" else 0
    # The base model's own values on a GPU, to ask it for its predictions.
    beside += trained * FP32 if config.distils and device.type != "cpu" else 0
    return MemoryEstimate(
        frozen_weights=frozen * size + beside,
        trained_weights=(trained + rows) * FP32,
        gradients=(trained + rows) * FP32 * (2 if config.processes > 1 else 1),
        optimizer=(trained + rows) * FP32 * 2,
        activations=_activations(config, plan, facts, run.kept),
        encoding=_encoding(config, plan, facts),
        overhead=CUDA_BYTES if device.type == "cuda" else 0,
        together=device.type == "cuda" and not config.compile and not config.gradient_checkpointing,
    )


def _activations(config: TrainConfig, plan: Plan, facts: BaseFacts, kept: int) -> int:
    texts = 0
    if plan.tokens:
        for tower, (_, text) in facts.texts.items():
            width, layers = _layers(text)
            texts += FP32 * CLIP_LAYER_WIDTHS * width * layers * min(facts.family.context[tower], POSITIONS)
    samples = config.recipe().batch_size * (1 if config.precision == "no" else HALF_ACTIVATIONS)
    return int(samples * (kept + texts))


def _encoding(config: TrainConfig, plan: Plan, facts: BaseFacts) -> int:
    """The feature maps of the photos that are placed anew and encoded together."""
    if not config.recipe().augmentation:
        return 0
    with_prior = config.distils or any(planned.regularization for planned in plan.concepts)
    photos = encoded_together(config.recipe().batch_size, plan.resolution, with_prior=with_prior)
    size = FP32 // 2 if config.precision == "bf16" else FP32
    return photos * ENCODER_MAPS * _first_width(facts.vae) * plan.resolution**2 * size


def _autoencoder_parameters(facts: BaseFacts, *, whole: bool) -> int:
    """Parameters of the autoencoder, or of what of it encodes."""
    named = _on_meta(facts.family.autoencoder, facts.vae).named_parameters()
    return sum(parameter.numel() for name, parameter in named if whole or name.partition(".")[0] not in DECODING)


def _layers(text: Mapping[str, Any]) -> tuple[int, int]:
    """Width and number of layers of a text encoder: CLIP's, T5's or a language model's."""
    text = text.get("text_config") or text
    width = text.get("hidden_size") or text["d_model"]
    return int(width), int(text.get("num_hidden_layers") or text["num_layers"])


def _first_width(vae: Mapping[str, Any]) -> int:
    """The width of an autoencoder's feature maps at the picture's own size."""
    blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels")
    return int(blocks[0]) if blocks else int(vae["base_dim"])


def _text_parameters(kind: str, text: Mapping[str, Any]) -> int:
    """Parameters of a text encoder of transformers."""
    import transformers

    model = getattr(transformers, kind)
    with torch.device("meta"):
        encoder = model(model.config_class.from_dict(dict(text)))
    return sum(parameter.numel() for parameter in encoder.parameters())


def _on_meta(kind: str, config: Mapping[str, Any]) -> Any:
    """A diffusers model without data."""
    import_pipelines()
    import diffusers

    with torch.device("meta"):
        return getattr(diffusers, kind).from_config(dict(config))


class _Fused(torch.autograd.Function):
    """Keeps what fused attention kernels keep: queries, keys, values and the output, not the attention matrix."""

    @staticmethod
    def forward(context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        context.save_for_backward(query, key, value, output)
        return output


class _FusedAttention(TorchFunctionMode):
    """Attention that computes nothing: without data, torch would keep the whole matrix of probabilities."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _Fused.apply(given["query"], given["key"], given["value"])
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class DenoiserRun:
    """Numbers of parameters, of those that train, and the bytes that autograd keeps of one sample in fp32."""

    parameters: int
    trained: int
    kept: int


def _denoiser_run(config: TrainConfig, plan: Plan, facts: BaseFacts) -> DenoiserRun:
    settings = json_text(dict(facts.denoiser), sort_keys=True, default=list)
    family, cells = facts.family.pipeline, plan.resolution // facts.factor
    run = run_denoiser(family, settings, config.method, cells, config.blocks)
    if not config.gradient_checkpointing:
        return run
    less = run_denoiser(family, settings, config.method, cells, config.blocks, checkpointing=True)
    return replace(run, kept=less.kept + int(LARGEST_BLOCK * run.kept))


@lru_cache(maxsize=16)
def run_denoiser(
    pipeline: str, config: str, method: str, cells: int, blocks: str | None = None, *, checkpointing: bool = False
) -> DenoiserRun:
    """Run the denoiser of a family's pipeline class and this configuration (JSON) without data.

    cells: latent cells per side.

    Raises ConfigError when the method does not fit it.
    """
    settings = json.loads(config)
    family = family_named(pipeline, pipeline)
    denoiser = _on_meta(family.denoiser_class, settings)
    named = dict(denoiser.requires_grad_(False).named_parameters())
    trained = [named[name].requires_grad_(True) for name in selected_names(denoiser, METHODS[method], blocks)]
    if checkpointing:
        denoiser.enable_gradient_checkpointing()
    weights = {parameter.untyped_storage()._cdata for parameter in named.values()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.device("meta"), saved, _FusedAttention():
        _run(family, denoiser, settings, cells)
    return DenoiserRun(
        parameters=sum(parameter.numel() for parameter in named.values()),
        trained=sum(parameter.numel() for parameter in trained),
        kept=sum(storage.nbytes() for storage in kept.values()),
    )


def _run(family: Family, denoiser: Any, settings: Mapping[str, Any], cells: int) -> None:
    noisy = torch.empty(1, family.taken_channels(settings), cells, cells)
    positions = min(max(family.context.values()), POSITIONS)
    times = torch.zeros(1) if family.flow else torch.zeros(1).long()
    family.predict(denoiser, noisy, times, family.example_text(settings, positions), torch.zeros(1, 6))
