"""Steps per second of cdkit's training against the usual way of training Custom Diffusion with diffusers.

The usual way: diffusers' CustomDiffusionAttnProcessor2_0 as trainable copies of keys and values, the autoencoder and
the text tower run on every sample of every step, AdamW over the whole embedding table. Same model, photos, batch,
resolution and number format; the two take turns step by step, so that other load on the machine meets both.

This is the embedded model on a CPU; Stable Diffusion's shapes on a GPU are in tests.bench.gpu.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
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
from cdkit.training.fit import fitted
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
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        write_scenes(images, REGULARIZATION_IMAGES)
        print(json_text(on_cpu(images, options.batch_size, options.steps)))


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


def bench_config(images: Path, device: Any, **values: Any) -> TrainConfig:
    """A training of the embedded world's star with images of stars; `values` count first."""
    settings: dict[str, Any] = {
        "base": "bench",
        "preset": "embedded",
        # The usual way always augments; the embedded preset does not.
        "augmentation": True,
        "concepts": {"star": "embedded:striped-star"},
        "regularization": {"star": str(images)},
        "enlarge": True,
        "device": str(device),
    }
    return TrainConfig(**settings | values)


@contextmanager
def training(
    pipeline: Any, images: Path, device: Any, note: Callable[[str], None] = lambda message: None, **values: Any
) -> Iterator[Any]:
    """Set up a training of `pipeline`; yields its loop, plan, accelerator and the seconds that setting up took."""
    config = bench_config(images, device, **values)
    facts = facts_of_pipeline("bench", pipeline)
    plan = make_plan(config, facts, note)
    config = fitted(config, plan, facts, device, note)
    with (
        tempfile.TemporaryDirectory() as folder,
        accelerated(Team(), device=device, precision=config.precision) as accelerator,
    ):
        clock = time.perf_counter()
        context = Context(create_engine("local", 1))
        setup = set_up(config, plan, pipeline, device, context)
        loop = Loop(config, setup, Folder(Path(folder)), accelerator, note)
        yield loop, plan, accelerator, time.perf_counter() - clock


def on_cpu(images: Path, batch_size: int, steps: int) -> dict[str, Any]:
    """Both sides in turn on the embedded model, fp32."""
    from cdkit.embedded import load_pipeline

    cpu = torch.device("cpu")
    with training(load_pipeline(), images, cpu, batch_size=batch_size) as (loop, plan, accelerator, setup):
        usual = UsualTraining(load_pipeline(), plan, loop.batches, accelerator)
        trained = list(loop.trainables.named().values())
        sides = {"ours": lambda step: loop.step(step, loop.optimizer, trained), "usual": usual.step}
        seconds, computed = {"ours": 0.0, "usual": 0.0}, {"ours": 0.0, "usual": 0.0}
        for step in range(steps + 2):
            for side in ("ours", "usual") if step % 2 == 0 else ("usual", "ours"):
                clock, busy = time.perf_counter(), time.process_time()
                sides[side](step)
                # Two steps to warm up.
                seconds[side] += (time.perf_counter() - clock) * (step >= 2)
                computed[side] += (time.process_time() - busy) * (step >= 2)
    return {
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "speedup_vs_usual": round(seconds["usual"] / seconds["ours"], 2),
        # Of the CPU's own time, which other load on the machine does not stretch.
        "speedup_of_cpu_time": round(computed["usual"] / computed["ours"], 2),
        "cpu_seconds_per_step": round(computed["ours"] / steps, 4),
        "seconds_per_step": round(seconds["ours"] / steps, 4),
        "usual_seconds_per_step": round(seconds["usual"] / steps, 4),
        "setup_seconds": round(setup, 2),
        "seconds_for_250_steps": round(setup + PAPER_STEPS * seconds["ours"] / steps, 1),
    }


if __name__ == "__main__":
    main()
