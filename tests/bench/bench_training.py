"""Steps per second of cdkit's training against the usual way of training Custom Diffusion with diffusers.

The usual way: diffusers' CustomDiffusionAttnProcessor2_0 as trainable copies of keys and values, the autoencoder and
the text tower run on every sample of every step, AdamW over the whole embedding table. Same model, photos, batch,
resolution and number format; the two take turns step by step, so that other load on the machine meets both.

On a CPU the model is the embedded one. With a CUDA device there is a second part: random weights of Stable Diffusion
1.5's size at 512 px, bf16, with and without torch.compile; seconds for 250 steps, peak memory, and the share of a
large matrix product's FLOP/s that training reaches.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cdkit.core.formatting import json_text
from cdkit.core.protocols import Context
from cdkit.core.storage import Folder
from cdkit.engines import create_engine
from cdkit.training.base_facts import facts_of_pipeline
from cdkit.training.config import TrainConfig
from cdkit.training.loop import Loop
from cdkit.training.plan import make_plan
from cdkit.training.processes import Team, accelerated
from cdkit.training.setup import set_up
from tests.bench.usual_training import UsualTraining

REGULARIZATION_IMAGES = 200
PAPER_STEPS = 250


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each side on the embedded model")
    parser.add_argument("--threads", type=int, default=0, help="torch threads on both sides [default: torch's own]")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--cuda-steps", type=int, default=PAPER_STEPS, help="timed steps at Stable Diffusion's size")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        write_scenes(images, REGULARIZATION_IMAGES)
        result = on_cpu(images, options.batch_size, options.steps)
        if torch.cuda.is_available():
            result |= on_cuda(images, options.batch_size, options.cuda_steps)
    print(json_text(result))


def write_scenes(folder: Path, count: int) -> None:
    """Pictures of stars in the embedded world with captions beside them."""
    from PIL import Image

    from cdkit.embedded.rendering import render
    from cdkit.embedded.world import BACKGROUNDS, compose, generator, pick, sample_look

    folder.mkdir()
    for number in range(count):
        rng = generator(number)
        _, pattern, colours = sample_look(rng, 0.5)
        place = pick(rng, BACKGROUNDS)
        picture = render(compose(rng, place, [("star", pattern, colours)]))
        Image.fromarray(picture).resize((512, 512), Image.Resampling.NEAREST).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"a photo of a {' and '.join(colours)} star, {place}, {number}")


@contextmanager
def training(pipeline: Any, images: Path, device: Any, **values: Any) -> Iterator[Any]:
    """Set up a training of `pipeline`; yields its loop, plan, accelerator and the seconds that setting up took."""
    config = TrainConfig(
        base="bench",
        preset="embedded",
        # The usual way always augments; the embedded preset does not.
        augmentation=True,
        concepts={"star": "embedded:striped-star"},
        regularization={"star": str(images)},
        enlarge=True,
        device=str(device),
        **values,
    )
    plan = make_plan(config, facts_of_pipeline("bench", pipeline), lambda message: None)
    with (
        tempfile.TemporaryDirectory() as folder,
        accelerated(Team(), device=device, precision=config.precision) as accelerator,
    ):
        clock = time.perf_counter()
        context = Context(create_engine("local", 1))
        setup = set_up(config, plan, pipeline, device, context)
        loop = Loop(config, setup, Folder(Path(folder)), accelerator)
        yield loop, plan, accelerator, time.perf_counter() - clock


def on_cpu(images: Path, batch_size: int, steps: int) -> dict[str, Any]:
    """Both sides in turn on the embedded model, fp32."""
    from cdkit.embedded import load_pipeline

    cpu = torch.device("cpu")
    with training(load_pipeline(), images, cpu, batch_size=batch_size) as (loop, plan, accelerator, setup):
        usual = UsualTraining(load_pipeline(), plan, loop.batches, accelerator)
        trained = list(loop.trainables.named().values())
        sides = {"ours": lambda step: loop.step(step, loop.optimizer, trained), "usual": usual.step}
        seconds = {"ours": 0.0, "usual": 0.0}
        for step in range(steps + 2):
            for side in ("ours", "usual") if step % 2 == 0 else ("usual", "ours"):
                clock = time.perf_counter()
                sides[side](step)
                # Two steps to warm up.
                seconds[side] += (time.perf_counter() - clock) * (step >= 2)
    return {
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "speedup_vs_usual": round(seconds["usual"] / seconds["ours"], 2),
        "seconds_per_step": round(seconds["ours"] / steps, 4),
        "usual_seconds_per_step": round(seconds["usual"] / steps, 4),
        "setup_seconds": round(setup, 2),
        "seconds_for_250_steps": round(setup + PAPER_STEPS * seconds["ours"] / steps, 1),
    }


def on_cuda(images: Path, batch_size: int, steps: int) -> dict[str, Any]:
    """Stable Diffusion 1.5's shapes at 512 px in bf16: plain with the usual way beside it, then compiled."""
    top = matrix_product_flops(torch.device("cuda"))
    facts = {"cuda_device": torch.cuda.get_device_name(), "matrix_product_tflops": round(top / 1e12, 1)}
    settings = {"batch_size": batch_size, "precision": "bf16", "resolution": 512}
    plain = cuda_side(images, steps, beside_usual=True, compile=False, **settings)
    compiled = cuda_side(images, steps, beside_usual=False, compile=True, **settings)
    for side in (plain, compiled):
        tflops = plain["tflop_per_step"] * PAPER_STEPS / side["seconds_for_250_steps"]
        side["share_of_matrix_product"] = round(tflops * 1e12 / top, 3)
    named = {f"{name}_{key}": v for name, s in (("cuda", plain), ("cuda_compiled", compiled)) for key, v in s.items()}
    return {**facts, **named}


def cuda_side(images: Path, steps: int, *, beside_usual: bool, **settings: Any) -> dict[str, Any]:
    """One training of random weights; `beside_usual` counts its operations and measures the usual way too."""
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    with training(random_pipeline(), images, device, **settings) as (loop, plan, accelerator, setup):
        trained = list(loop.trainables.named().values())
        optimizer = accelerator.prepare_optimizer(loop.optimizer)

        def step(number: int) -> None:
            loop.step(number, optimizer, trained)

        warm = timed(step, 3)
        seconds = timed(step, steps) / steps
        found = {
            "seconds_for_250_steps": round(PAPER_STEPS * seconds, 2),
            "setup_seconds": round(setup + warm - 3 * seconds, 2),
            "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        }
        if beside_usual:
            found["tflop_per_step"] = round(flops_of(lambda: step(0)) / 1e12, 2)
            usual = UsualTraining(random_pipeline().to(device), plan, loop.batches, accelerator)
            timed(usual.step, 3)
            few = max(1, steps // 10)
            usual_seconds = timed(usual.step, few) / few
            found["usual_seconds_for_250_steps"] = round(PAPER_STEPS * usual_seconds, 2)
            found["speedup_vs_usual"] = round(usual_seconds / seconds, 2)
    torch.cuda.empty_cache()
    return found


def timed(step: Any, steps: int) -> float:
    """Seconds of so many steps, the device's work included."""
    torch.cuda.synchronize()
    clock = time.perf_counter()
    for number in range(steps):
        step(number)
    torch.cuda.synchronize()
    return time.perf_counter() - clock


def flops_of(work: Any) -> int:
    """Floating-point operations of products, convolutions and attention, backward included."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def matrix_product_flops(device: torch.device, size: int = 8192, rounds: int = 20) -> float:
    """FLOP/s of a large bf16 matrix product on this device."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    timed(lambda _: left @ right, 3)
    return 2 * size**3 * rounds / timed(lambda _: left @ right, rounds)


def random_pipeline() -> Any:
    """Stable Diffusion 1.5's classes and sizes with random weights, fp32 on the CPU."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from cdkit.embedded.tokenizer import END_ID, START_ID, load_tokenizer

    widths = (320, 640, 1280, 1280)
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=START_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
    )
    return StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            sample_size=512,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=load_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=widths
        ),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


if __name__ == "__main__":
    main()
