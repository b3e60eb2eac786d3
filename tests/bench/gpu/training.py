"""Training at Stable Diffusion 1.5's and XL's shapes with random weights: seconds, memory, operations.

Stable Diffusion 1.5: 512 px, batch 8 (4 photos with augmentation, 4 regularization), bf16. XL: 1024 px, batch 4.
`share` is what a step reaches of a large bf16 matrix product's FLOP/s.
"""

from __future__ import annotations

import gc
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from cdkit.training.base_facts import facts_of_pipeline
from cdkit.training.plan import make_plan
from cdkit.training.processes import Team, accelerated
from tests.bench.bench_training import PAPER_STEPS, bench_config, training, write_scenes
from tests.bench.gpu.shapes import Shape, sd15, sdxl, tiny_sd, tiny_xl
from tests.bench.usual_training import UsualTraining

Figures = Iterator[tuple[str, dict[str, Any]]]
WARM_STEPS = 3


def measure(*, tiny: bool, seconds: float) -> Figures:
    """Figures in order of worth, each as it is known; what would begin after `seconds` is left out, and said."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ends = time.monotonic() + seconds
    top = matrix_product(device, 64 if tiny else 8192)
    yield "matrix_product", {"tflops": round(top / 1e12, 3)}
    sizes = ("8GB",) if tiny else ("8GB", "12GB", "24GB")
    small, large = (tiny_sd(), tiny_xl()) if tiny else (sd15(), sdxl())
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        write_scenes(images, small.regularization)
        parts: list[tuple[str, Callable[[], Figures]]] = [
            ("sd15", lambda: ours(small, images, device, top)),
            *((f"fit_{size}", partial(fit, small, images, device, size)) for size in sizes),
            ("sdxl", lambda: ours(large, images, device, top)),
            ("precision", lambda: precision(images, device, 2 if tiny else PAPER_STEPS)),
            ("sd15_usual", lambda: usual(small, images, device)),
        ]
        if device.type == "cuda":
            parts.append(("attention", lambda: attention(device)))
        for name, part in parts:
            if time.monotonic() > ends:
                yield f"{name}_skipped", {"skipped": "no time left"}
                continue
            begun = time.monotonic()
            try:
                for suffix, values in part():
                    yield name + suffix, values | {"part_seconds": round(time.monotonic() - begun, 1)}
            except Exception:  # the next part is worth as much
                yield f"{name}_failed", {"failed": traceback.format_exc()[-900:]}
            free()


def ours(shape: Shape, images: Path, device: torch.device, top: float) -> Figures:
    """Our training: set-up and steps; then what a step is made of; then its kernels."""
    pipeline, built = seconds_of(lambda: shape.pipeline(device).to("cpu"), device)
    free()
    notes: list[str] = []
    with training(pipeline, images, device, note=notes.append, **shape.settings) as (loop, _, accelerator, setup):
        trained = list(loop.trainables.named().values())
        optimizer = accelerator.prepare_optimizer(loop.optimizer)

        def step(number: int) -> None:
            loop.step(number, optimizer, trained)

        batch = loop.batches.make(0, range(loop.number))
        loss = loss_of(loop, batch)
        reset_peak(device)
        _, first = seconds_of(lambda: [step(number) for number in range(WARM_STEPS)], device)
        _, measured = seconds_of(lambda: [step(WARM_STEPS + number) for number in range(shape.steps)], device)
        each = measured / shape.steps
        yield (
            "",
            {
                "seconds_per_step": round(each, 4),
                "seconds_for_250_steps": round(PAPER_STEPS * each, 2),
                "setup_seconds": round(setup + first - WARM_STEPS * each, 2),
                "first_steps_seconds": round(first, 2),
                "seconds_for_250_steps_with_setup": round(setup + first + (PAPER_STEPS - WARM_STEPS) * each, 2),
                "peak_gb": peak(device),
                "steps_timed": shape.steps,
                "pipeline_built_seconds": round(built, 1),
                "loss": loss,
                "notes": notes,
            },
        )
        yield "_pass", passes(loop, batch, device, each, top)
        if device.type == "cuda":
            yield "_kernels", kernels(lambda: loop.add_gradients(batch))


def passes(loop: Any, batch: Any, device: torch.device, each: float, top: float) -> dict[str, Any]:
    """What a step is made of, in milliseconds, its operations, and their share of the matrix product."""
    found: dict[str, Any] = {}
    if hasattr(loop.add_gradients, "eager"):
        found["graph_ms"] = milliseconds(lambda: loop.add_gradients(batch), device)
        found["graph_difference"] = graph_difference(loop, batch)
        loop.add_gradients = loop.add_gradients.eager
    found["eager_ms"] = milliseconds(lambda: loop.add_gradients(batch), device)
    found["text_ms"] = milliseconds(lambda: loop.denoising.conditioning.features(batch.prompts), device)
    found["make_ms"] = milliseconds(lambda: loop.batches.make(0, range(loop.number)), device)
    found["encode_ms_per_photo"] = encoding(loop, device)
    counted = operations(lambda: loop.add_gradients(batch))
    return found | {"tflop_per_step": round(counted / 1e12, 4), "share": round(counted / each / top, 3)}


def usual(shape: Shape, images: Path, device: torch.device) -> Figures:
    """The usual way: diffusers' processors, everything on every sample of every step, under autocast."""
    few = max(1, shape.steps // 8)
    pipeline = shape.pipeline(device)
    settings = shape.settings | {"regularization_count": min(16, shape.regularization)}
    config = bench_config(images, device, **settings)
    facts = facts_of_pipeline("bench", pipeline)
    plan = make_plan(config, facts, lambda message: None)
    # What it takes of ours: the seed, how many samples a step has, the side of the latents.
    order = SimpleNamespace(
        seed=config.seed, samples_per_step=config.batch_size, cells=plan.resolution // facts.factor
    )
    with accelerated(Team(), device=device, precision=config.precision) as accelerator:
        steps = UsualTraining(pipeline.to(device), plan, order, accelerator)
        reset_peak(device)
        for number in range(2):
            steps.step(number)
        _, measured = seconds_of(lambda: [steps.step(2 + number) for number in range(few)], device)
    each = measured / few
    yield (
        "",
        {
            "seconds_per_step": round(each, 4),
            "seconds_for_250_steps": round(PAPER_STEPS * each, 2),
            "peak_gb": peak(device),
            "steps_timed": few,
        },
    )


def fit(shape: Shape, images: Path, device: torch.device, size: str) -> Figures:
    """What a training takes that was made to fit: its batches, the estimate, and the peak of three steps."""
    pipeline = shape.pipeline(device)
    notes: list[str] = []
    settings = shape.settings | {"regularization_count": min(16, shape.regularization), "fit": size}
    with training(pipeline, images, device, note=notes.append, **settings) as (loop, _, accelerator, _):
        reset_peak(device)
        trained = list(loop.trainables.named().values())
        optimizer = accelerator.prepare_optimizer(loop.optimizer)
        loop.step(0, optimizer, trained)
        _, measured = seconds_of(lambda: [loop.step(number, optimizer, trained) for number in (1, 2)], device)
        yield "", {"notes": notes, "peak_gb": peak(device), "seconds_per_step": round(measured / 2, 4)}


def loss_of(loop: Any, batch: Any) -> float:
    """The batch's loss kernel by kernel, which says whether two ways compute the same."""
    eager = getattr(loop.add_gradients, "eager", loop.add_gradients)
    return round(float(eager(batch).mean()), 6)


def graph_difference(loop: Any, batch: Any) -> float:
    """How far the gradients of a replayed pass are from those of one kernel by kernel, relative to these."""
    parameters = list(loop.trainables.named().values())
    gradients = []
    for add in (loop.add_gradients, loop.add_gradients.eager):
        loop.optimizer.zero_grad(set_to_none=False)
        add(batch)
        gradients.append(torch.cat([p.grad.reshape(-1).float() for p in parameters]))
    loop.optimizer.zero_grad(set_to_none=False)
    return float((gradients[0] - gradients[1]).norm() / gradients[1].norm())


def precision(images: Path, device: torch.device, steps: int) -> Figures:
    """What bf16 changes of a training of the embedded model: the mean loss of its last fifth, and what it learned."""
    from cdkit.embedded import load_pipeline

    learned, losses, seconds = {}, {}, {}
    for name in ("no", "bf16"):
        settings = {"precision": name, "steps": steps, "batch_size": 8, "augmentation": False}
        with training(load_pipeline(), images, device, **settings) as (loop, _, accelerator, _):
            trained = list(loop.trainables.named().values())
            optimizer = accelerator.prepare_optimizer(loop.optimizer)
            sums, seconds[name] = seconds_of(
                lambda loop=loop, optimizer=optimizer, trained=trained: [
                    loop.step(number, optimizer, trained) for number in range(steps)
                ],
                device,
            )
            last = torch.stack(sums[-max(1, steps // 5) :]).sum(dim=0)
            losses[name] = round(float(last[0] / last[1]), 5)
            learned[name] = torch.cat([change.reshape(-1) for change in loop.trainables.changes().values()])
    difference = (learned["bf16"] - learned["no"]).norm() / learned["no"].norm()
    yield (
        "",
        {
            "steps": steps,
            "mean_loss": losses,
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "difference_of_what_was_learned": round(float(difference), 4),
        },
    )


def encoding(loop: Any, device: torch.device) -> float:
    """Milliseconds that one of the photos takes that are encoded together for several steps."""
    batches = loop.batches
    photos = torch.zeros(loop.number, 3, batches.resolution, batches.resolution, device=device)
    return round(milliseconds(lambda: batches.encoder.encode(photos), device) / loop.number, 3)


def matrix_product(device: torch.device, size: int, rounds: int = 20) -> float:
    """FLOP/s of a bf16 matrix product of this size."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    _, measured = seconds_of(lambda: [left @ right for _ in range(rounds)], device)
    return 2 * size**3 * rounds / measured


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of products, convolutions and attention, backward included."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def kernels(work: Callable[[], Any], most: int = 30) -> dict[str, float]:
    """Milliseconds on the GPU by kernel, the dearest first, and all of them together."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize()
    rows = [(entry.key[:90], entry.self_device_time_total / 1e3) for entry in profiled.key_averages()]
    rows.sort(key=lambda row: -row[1])
    return {"all": round(sum(time for _, time in rows), 2), **{name: round(time, 2) for name, time in rows[:most]}}


def attention(device: torch.device) -> Figures:
    """Milliseconds of Stable Diffusion 1.5's widest attention, forward and backward, by who computes it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found: dict[str, Any] = {}
    for keys in (4096, 77):
        shapes = ((8, 8, 4096, 40), (8, 8, keys, 40), (8, 8, keys, 40))
        tensors = [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]

        def work(tensors: list[torch.Tensor] = tensors) -> None:
            functional.scaled_dot_product_attention(*tensors).sum().backward()

        found[f"{keys}_chosen"] = milliseconds(work, device)
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            name = f"{keys}_{backend.name.lower()}"
            try:
                with sdpa_kernel(backend):
                    found[name] = milliseconds(work, device)
            except RuntimeError as error:
                found[name] = str(error).splitlines()[0][:100]
    yield "", found


def seconds_of(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What it returns, and its seconds with the device's work."""
    synchronize(device)
    clock = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - clock


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """Of one round; on a GPU of five, after one to warm up."""
    rounds = 5 if device.type == "cuda" else 1
    if rounds > 1:
        work()
    return round(1e3 * seconds_of(lambda: [work() for _ in range(rounds)], device)[1] / rounds, 2)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: torch.device) -> None:
    free()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak(device: torch.device) -> float | None:
    """GB that were taken from the device at most; None on a CPU."""
    return round(torch.cuda.max_memory_reserved() / 1e9, 2) if device.type == "cuda" else None


def free() -> None:
    """Give back what the part before held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
