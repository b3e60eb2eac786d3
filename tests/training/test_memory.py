"""The memory estimate against what a training step really holds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cdkit.core.errors import ConfigError
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.protocols import Context
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.families.table import family_named
from cdkit.training import feasibility
from cdkit.training.base_facts import BaseFacts, facts_of_pipeline, read_base
from cdkit.training.config import TrainConfig
from cdkit.training.feasibility import check_memory
from cdkit.training.latents import PictureEncoder
from cdkit.training.memory import GIB, MemoryEstimate, estimate_memory, gigabytes
from cdkit.training.plan import Plan, make_plan
from cdkit.training.processes import Team, accelerated
from cdkit.training.setup import set_up
from tests.support.progress import Notes
from tests.support.tiny_xl_pipeline import tiny_xl_pipeline
from tests.training.running import Material, run

CPU = torch.device("cpu")
XL = {
    "sample_size": 128,
    "in_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
XL_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def _text(width: int, inner: int, layers: int) -> dict[str, int]:
    sizes = {"vocab_size": 49408, "max_position_embeddings": 77, "num_hidden_layers": layers}
    return {"hidden_size": width, "intermediate_size": inner, **sizes}


@pytest.fixture(scope="module")
def xl_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("xl")
    tiny_xl_pipeline(folder)
    return str(folder)


def _measured(config: TrainConfig, plan: Plan) -> tuple[int, int, int, int]:
    """Bytes of trained weights, gradients, optimizer states, and of what autograd keeps in a real step."""
    kept: dict[int, torch.UntypedStorage] = {}
    with accelerated(Team(), device=CPU, precision="no"):
        pipeline = load_base_model(config.base, device=CPU)
        number = config.recipe().batch_size
        ready = set_up(config, plan, pipeline, CPU, Context(None, Notes()))  # type: ignore[arg-type]
        models = [part for part in ready.pipeline.components.values() if isinstance(part, torch.nn.Module)]
        own = {parameter.untyped_storage().data_ptr() for model in models for parameter in model.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        batch = ready.batches.make(0, range(number))
        optimizer = ready.trainables.optimizer(1e-3, 1e-3, 0.0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = ready.denoising.losses(batch).sum()
        activations = sum(storage.nbytes() for storage in kept.values())
        loss.backward()
        optimizer.step()
    named = ready.trainables.named().values()
    states = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    gradients = [parameter.grad for parameter in named if parameter.grad is not None]
    sizes = [sum(tensor.nbytes for tensor in tensors) for tensors in (list(named), gradients, states)]
    return sizes[0], sizes[1], sizes[2], activations


@pytest.mark.parametrize("method", ["custom-diffusion", "fine-tune-all", "textual-inversion"])
@pytest.mark.parametrize("base", ["tiny", "tiny xl", EMBEDDED])
def test_the_estimate_is_what_a_step_holds(material: Material, xl_base: str, base: str, method: str) -> None:
    folder = {"tiny": str(material.root / "base"), "tiny xl": xl_base}.get(base, base)
    initializer = "<new1>=red" if base == EMBEDDED else "<new1>=cat"
    config = material.config(base=folder, method=method, batch_size=4, token={"cat": initializer}, enlarge=True)
    facts = read_base(folder)
    plan = make_plan(config, facts, Notes().note)
    estimate = estimate_memory(config, plan, facts, CPU)
    weights, gradients, optimizer, activations = _measured(config, plan)
    assert estimate.trained_weights == weights
    assert estimate.gradients == gradients
    assert estimate.optimizer == optimizer
    assert 0.6 * activations < estimate.activations < 1.7 * activations


def test_files_and_a_loaded_pipeline_say_the_same(material: Material, xl_base: str) -> None:
    for base in (str(material.root / "base"), xl_base):
        config, facts = material.config(base=base), read_base(base)
        assert facts.pipeline is None
        plan = make_plan(config, facts, print)
        pipeline = load_base_model(base, device=CPU)
        from_files = estimate_memory(config, plan, facts, CPU)
        assert from_files == estimate_memory(config, plan, facts_of_pipeline(base, pipeline), CPU)
        towers = [tower for tower in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)) if tower]
        counted = sum(
            parameter.numel() for model in (pipeline.unet, pipeline.vae, *towers) for parameter in model.parameters()
        )
        trained = from_files.gradients // 4 - sum(tower.config.hidden_size for tower in towers)
        assert from_files.frozen_weights == 4 * (counted - trained) + 4 * trained


def real_sdxl(material: Material, **values: Any) -> tuple[TrainConfig, Plan, BaseFacts]:
    config = material.config(batch_size=4, **values)
    facts = read_base(config.base)
    plan = make_plan(config, facts, Notes().note)
    towers = [_text(768, 3072, 12), _text(1280, 5120, 32)]
    family = family_named("StableDiffusionXLPipeline", "XL")
    texts = {name: ("CLIPTextModel", tower) for name, tower in zip(family.texts, towers, strict=True)}
    return (
        config,
        Plan(plan.method, plan.concepts, plan.tokens, 1024),
        replace(facts, family=family, denoiser=XL, vae=XL_VAE, texts=texts),
    )


def test_real_sdxl_counts_and_what_lowers_it(material: Material) -> None:
    estimates = {}
    for name, values in {
        "plain": {},
        "half": {"precision": "bf16"},
        "checkpointed": {"gradient_checkpointing": True},
        "whole": {"method": "fine-tune-all"},
    }.items():
        config, plan, facts = real_sdxl(material, **values)
        estimates[name] = estimate_memory(config, plan, facts, torch.device("cuda"))
    # 340,787,200 numbers of keys and values (and one row per tower): 1.36 GB in fp32.
    assert estimates["plain"].trained_weights == 4 * (340_787_200 + 768 + 1280)
    assert 11 * GIB < estimates["plain"].frozen_weights < 14 * GIB
    assert estimates["checkpointed"].activations < 0.6 * estimates["plain"].activations
    assert estimates["half"].total < 0.8 * estimates["plain"].total
    assert estimates["whole"].certain == pytest.approx(4 * 4 * 2_567_463_684 + 4 * 8.2e8 + 4 * 8.4e7, rel=0.02)


def test_too_little_memory_is_refused_or_warned_of(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    config, plan, facts = real_sdxl(material)
    notes = Notes()
    monkeypatch.setattr(feasibility, "device_memory", lambda device: (80 * GIB, 80 * GIB))
    estimate = check_memory(config, plan, facts, CPU, notes.note)
    assert estimate.total < 80 * GIB
    assert notes.notes[-1].startswith("Memory on cpu: about ")
    monkeypatch.setattr(feasibility, "device_memory", lambda device: (20 * GIB, 24 * GIB))
    check_memory(config, plan, facts, CPU, notes.note)
    assert "may not suffice" in notes.notes[-1]
    assert "--batch-size 1 --gradient-accumulation 4" in notes.notes[-1]
    assert "--gradient-checkpointing" in notes.notes[-1]
    monkeypatch.setattr(feasibility, "device_memory", lambda device: (8 * GIB, 8 * GIB))
    with pytest.raises(ConfigError, match=r"optimizer alone; cpu has 8\.0 GiB") as failed:
        check_memory(config, plan, facts, CPU, notes.note)
    assert "--precision bf16" in str(failed.value.hint)


def test_training_stops_before_the_weights_are_loaded(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feasibility, "device_memory", lambda device: (1000, 1000))
    monkeypatch.setattr(BaseFacts, "load", lambda facts: pytest.fail("the base model was loaded"))
    with pytest.raises(ConfigError, match="optimizer alone"):
        run(material.config(), tmp_path / "out")


def test_unknown_memory_is_no_reason_to_stop(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    config, plan, facts = real_sdxl(material)
    monkeypatch.setattr(feasibility, "device_memory", lambda device: None)
    assert isinstance(check_memory(config, plan, facts, CPU, pytest.fail), MemoryEstimate)
    assert gigabytes(3 * GIB) == "3.0 GiB"
    assert gigabytes(5 << 20) == "5 MiB"


def test_this_machine_says_how_much_it_has() -> None:
    known = feasibility.device_memory(CPU)
    if known is None:
        pytest.skip("this system does not say")
    assert 0 < known[0] <= known[1]


def test_a_method_that_does_not_fit_is_found_before_the_weights_are_loaded(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(material.root / "base", tmp_path / "plain")
    settings = tmp_path / "plain" / "unet" / "config.json"
    plain = {
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
    }
    settings.write_text(json.dumps(json.loads(settings.read_text()) | plain))
    monkeypatch.setattr(BaseFacts, "load", lambda facts: pytest.fail("the base model was loaded"))
    with pytest.raises(ConfigError, match="custom-diffusion does not fit this base model"):
        run(material.config(base=str(tmp_path / "plain")), tmp_path / "out")


def test_what_only_decodes_stays_off_the_device_and_out_of_the_estimate(material: Material) -> None:
    pipeline = load_base_model(str(material.root / "base"), device=CPU)
    family = family_named("StableDiffusionPipeline", "base")
    pixels = torch.rand(2, 3, 32, 32)
    whole = family.moments(pipeline.vae, pixels)
    encoder = PictureEncoder(pipeline.vae, family, device=torch.device("meta"), dtype=torch.float32)
    where = {name: parameter.device.type for name, parameter in encoder.vae.named_parameters()}
    assert where == {name: "meta" if name.startswith(("encoder.", "quant_")) else "cpu" for name in where}
    assert encoder.encode(pixels).mean.device.type == "meta", "nothing else of the autoencoder is needed"
    again = load_base_model(str(material.root / "base"), device=CPU).vae
    encoder = PictureEncoder(again, family, device=CPU, dtype=torch.float32)
    assert all(one.equal(other) for one, other in zip(family.moments(encoder.vae, pixels), whole, strict=True))
    config, plan, facts = real_sdxl(material, precision="bf16", augmentation=True)
    weights = [
        estimate_memory(config.model_copy(update={"augmentation": shown}), plan, facts, torch.device("cuda"))
        for shown in (True, False)
    ]
    # 34,163,592 of the autoencoder's 83,653,863 numbers encode (diffusers' settings here: without its own two heads).
    assert weights[0].frozen_weights - weights[1].frozen_weights == pytest.approx(2 * 34.16e6, rel=0.01)
