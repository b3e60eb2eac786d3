"""Stable Diffusion 2.x's v-prediction end to end: train, merge, export, load in diffusers, same output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from cdkit.core.config import parse_config
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.delta import load_delta
from cdkit.execute import Result, execute
from cdkit.stages import STAGES
from tests.support.diffusers_loading import load_embeddings
from tests.support.made_deltas import unet_output
from tests.training.running import Material, run

CPU = torch.device("cpu")
PROMPT = "photo of a <new1> cat"


def _execute(stage: str, out: Path, **values: Any) -> Result:
    return execute(stage, parse_config(STAGES[stage].config_class(), values), out)


@pytest.fixture(scope="module")
def merged(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two concepts trained apart on a v-prediction model, merged."""
    root = tmp_path_factory.mktemp("velocity")
    base = str(material.root / "velocity")
    run(material.config(base=base, learning_rate=1e-2), root / "cat")
    dog = {"concepts": {"dog": str(material.root / "dog")}, "regularization": {}, "token": {"dog": "<new1>=dog"}}
    run(material.config(base=base, learning_rate=1e-2, **dog), root / "dog")
    (root / "captions.csv").write_text("caption\n" + "\n".join(f"photo of a cat {n} x" for n in range(60)))
    values = {"deltas": [str(root / "cat"), str(root / "dog")], "captions": [str(root / "captions.csv")]}
    _execute("merge", root / "merged", base=base, device="cpu", **values)
    return root / "merged"


def test_a_merge_exported_and_loaded_in_diffusers_draws_the_same(
    material: Material, merged: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    base = str(material.root / "velocity")
    pipeline = load_base_model(base, device=CPU)
    before = unet_output(pipeline, PROMPT)
    apply_deltas(pipeline, [load_delta(merged)])
    wanted = unet_output(pipeline, PROMPT)
    assert (before - wanted).norm() > 0.05 * wanted.norm()
    for to in ("diffusers-lora", "kohya-lora"):
        _execute("export", tmp_path / to, delta=str(merged), to=to, base=base)
        loaded = load_base_model(base, device=CPU)
        file = tmp_path / to if to == "diffusers-lora" else tmp_path / to / "loras" / f"{to}.safetensors"
        loaded.load_lora_weights(str(file))
        load_embeddings(loaded, tmp_path / to)
        torch.testing.assert_close(unet_output(loaded, PROMPT), wanted, rtol=1e-4, atol=1e-5)
    _execute("export", tmp_path / "baked", delta=str(merged), to="diffusers-pipeline", base=base)
    baked = StableDiffusionPipeline.from_pretrained(tmp_path / "baked")
    assert baked.scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(unet_output(baked, PROMPT), wanted, rtol=1e-5, atol=1e-6)


def test_sampling_reads_the_prediction_as_a_velocity(material: Material, merged: Path, tmp_path: Path) -> None:
    """What cdkit sample draws is what diffusers draws with a scheduler told to expect a velocity, and nothing else."""
    base = str(material.root / "velocity")
    _execute(
        "sample", tmp_path / "s", base=base, deltas=[str(merged)], prompts=[PROMPT], seeds=1, steps=3, device="cpu"
    )
    ours = np.asarray(Image.open(tmp_path / "s" / "images" / "0000-0.png"), dtype=int)
    drawn = {}
    for kind in ("v_prediction", "epsilon"):
        pipeline = load_base_model(base, device=CPU)
        apply_deltas(pipeline, [load_delta(merged)])
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type=kind)
        random = [torch.Generator().manual_seed(0)]
        values = {"num_inference_steps": 3, "guidance_scale": 6.0, "output_type": "np"}
        drawn[kind] = np.asarray(pipeline(PROMPT, generator=random, **values).images[0]) * 255
    assert np.abs(ours - drawn["v_prediction"]).max() <= 1
    assert np.abs(ours - drawn["epsilon"]).max() > 10
