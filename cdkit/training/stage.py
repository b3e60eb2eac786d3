"""The train stage: photos of concepts and a base model in, a delta out; resumable to the bit on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cdkit.core.config import canonical
from cdkit.core.errors import CdkitError, ResourceError
from cdkit.core.fingerprints import Input
from cdkit.core.formatting import command_line
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context, SilentProgress
from cdkit.core.shards import Dataset
from cdkit.core.storage import Folder
from cdkit.core.system_errors import shortage
from cdkit.core.threads import set_threads
from cdkit.deltas.delta import DELTA_NAME, ON_TOP_OF, Delta, load_delta, save_delta
from cdkit.training.config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline

    from cdkit.training.loop import Loop
    from cdkit.training.plan import Plan
    from cdkit.training.processes import Team
    from cdkit.training.setup import Ready


METRICS_NAME, CHECKPOINTS, SAMPLES, TENSORBOARD = "metrics.csv", "checkpoints", "samples", "tensorboard"
WEIGHT_DECAY = 1e-2
FINAL_SHARE = 10
LARGE_DELTA = 300_000_000  # SDXL's keys and values are 1.36 GB, a whole U-Net 3.4 GB and more
STEPS_BETWEEN_QUESTIONS = 10  # how many steps a GPU may run ahead of the losses that are read


def train(config: TrainConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Train, going on from the newest checkpoint, and write delta.safetensors, metrics.csv and samples/."""
    from cdkit.training.processes import started_team

    with started_team(config.processes, _take_part, (config, out)) as team:
        details = _train(config, out, context, team)
    photos, others = details.pop("photos"), details.pop("left_out")
    counts = Counts(photos + others, photos, {"not_an_image": others} if others else {})
    return Dataset("delta", out.path, counts, details)


def _take_part(config: TrainConfig, out: Folder, team: Team) -> None:
    """What the further processes run."""
    from cdkit.engines import create_engine

    _train(config, out, Context(create_engine("local", 1), SilentProgress()), team)


def _train(config: TrainConfig, out: Folder, context: Context, team: Team) -> dict[str, Any]:
    from cdkit.core.devices import choose_device
    from cdkit.training.base_facts import facts_of_files, facts_of_pipeline
    from cdkit.training.memory import check_memory, configs_of_base
    from cdkit.training.plan import make_plan
    from cdkit.training.processes import accelerated

    device = choose_device(config.device)
    if device.type == "cpu":
        _settle_threads(config, out, context, team)
    earlier = [load_delta(path) for path in config.delta]
    facts = facts_of_files(config.base)
    # What a hub id stands for is known only when it is here.
    pipeline = _load(config) if facts is None else None
    if facts is None:
        facts = facts_of_pipeline(config.base, pipeline)
    plan = make_plan(config, facts, context.progress.note)
    if team.rank == 0:
        check_memory(config, plan, configs_of_base(config.base, pipeline), device, context.progress.note)
    tensorboard = out / TENSORBOARD if config.tensorboard and team.rank == 0 else None
    with (
        _memory_explained(),
        accelerated(team, device=device, precision=config.precision, tensorboard=tensorboard) as accelerator,
    ):
        pipeline = pipeline or _load(config)
        return _run(config, plan, pipeline, earlier, out, context, accelerator)


def _settle_threads(config: TrainConfig, out: Folder, context: Context, team: Team) -> None:
    """Share the threads between the processes; a training goes on with as many as it began, for the same bits."""
    from cdkit.training.checkpoint import Checkpoints

    share = max(1, config.thread_count() // team.size)
    before = Checkpoints(out / CHECKPOINTS).threads() or share
    if before != share and config.threads is not None:
        context.progress.note(
            f"The checkpoint was made on {before} threads: on {share}, the result is the same but for rounding. "
            "Without --threads the training goes on as it began."
        )
    set_threads(share if config.threads is not None else before)


def _load(config: TrainConfig) -> DiffusionPipeline:
    import torch

    from cdkit.deltas.base_model import load_base_model

    # Always in fp32: what trains starts from the exact weights.
    return load_base_model(config.base, device=torch.device("cpu"))


def _run(
    config: TrainConfig,
    plan: Plan,
    pipeline: DiffusionPipeline,
    earlier: list[Delta],
    out: Folder,
    context: Context,
    accelerator: Accelerator,
) -> dict[str, Any]:
    from cdkit.deltas.apply import apply_deltas
    from cdkit.deltas.base_model import base_hash
    from cdkit.deltas.pipeline_folder import library_errors
    from cdkit.training.plan import tokens_as_json
    from cdkit.training.setup import set_up
    from cdkit.training.trainables import trained_tokens

    recipe = config.recipe()
    apply_deltas(pipeline, earlier, note=context.progress.note)
    made_on = base_hash(pipeline)
    samples_per_step = recipe.batch_size * config.gradient_accumulation * accelerator.num_processes
    with library_errors(f"The base model {config.base!r}", "trained"):
        ready = set_up(config, plan, pipeline, accelerator.device, samples_per_step, context)
    loop = make_loop(config, ready, out, accelerator)
    loop.run(context, _drawing(config, plan, ready, out, accelerator))
    if accelerator.is_main_process:
        delta = Delta(
            method=config.method,
            base=config.base,
            base_hash=made_on,
            changes=ready.trainables.changes(),
            tokens=trained_tokens(plan.tokens, ready.trainables.rows),
            prompts=tuple(plan.prompts),
            settings=canonical(config) | ({ON_TOP_OF: [one.base_hash for one in earlier]} if earlier else {}),
        )
        save_delta(delta, out / DELTA_NAME)
        size = (out / DELTA_NAME).stat().st_size
        if size > LARGE_DELTA:
            context.progress.note(
                f"{DELTA_NAME} has {size / 1e9:.1f} GB. As products of low rank it takes a fraction: "
                f"{command_line('cdkit', 'delta', 'compress', out.path)} --max-error 0.1 --out DIR"
            )
    return {
        "steps": recipe.steps,
        "seconds": loop.metrics.seconds,
        "final_loss": loop.metrics.mean_loss(max(1, recipe.steps // FINAL_SHARE)),
        "base": config.base,
        "method": config.method,
        "tokens": tokens_as_json(plan),
        "prompts": plan.prompts,
        "parameters": sum(parameter.numel() for parameter in ready.trainables.named().values()),
        "photos": sum(len(planned.squares) for planned in plan.concepts),
        "left_out": sum(planned.left_out for planned in plan.concepts),
    }


def make_loop(config: TrainConfig, ready: Ready, out: Folder, accelerator: Accelerator) -> Loop:
    """The loop of a training that is set up, its files in `out`."""
    from cdkit.training.checkpoint import Checkpoints
    from cdkit.training.loop import Loop, LoopSettings
    from cdkit.training.metrics import Metrics

    recipe = config.recipe()
    rates = recipe.learning_rate, recipe.token_learning_rate
    interval = 1 if accelerator.device.type == "cpu" else STEPS_BETWEEN_QUESTIONS
    return Loop(
        settings=LoopSettings(
            steps=recipe.steps,
            batch_size=recipe.batch_size,
            schedule=recipe.schedule,
            accumulation=config.gradient_accumulation,
            max_grad_norm=config.max_grad_norm,
            checkpoint_every=config.checkpoint_every,
            sample_every=config.sample_every,
        ),
        trainables=ready.trainables,
        optimizer=ready.trainables.optimizer(*rates, WEIGHT_DECAY),
        losses=ready.denoising.losses,
        batches=ready.batches,
        accelerator=accelerator,
        checkpoints=Checkpoints(out.sub(CHECKPOINTS).path),
        metrics=Metrics(out / METRICS_NAME, interval, lambda step, values: accelerator.log(dict(values), step)),
    )


def _drawing(
    config: TrainConfig, plan: Plan, ready: Ready, out: Folder, accelerator: Accelerator
) -> Callable[[int], None]:
    """What draws samples/step-000100.png: each concept's subject, and its category without the word."""

    def draw(step: int) -> None:
        from cdkit.training.progress_samples import draw_samples

        template = config.recipe().template
        subjects = [planned.concept.subject for planned in plan.concepts]
        categories = [planned.concept.category for planned in plan.concepts]
        prompts = list(dict.fromkeys(template.replace("{}", name) for name in (*subjects, *categories)))
        target = out.sub(SAMPLES) / f"step-{step:06d}.png"
        with accelerator.autocast():
            draw_samples(ready.pipeline, prompts, plan.resolution, accelerator.device, target)

    return draw


@contextmanager
def _memory_explained() -> Iterator[None]:
    """Turn running out of memory into an error that says what to lower."""
    try:
        yield
    except Exception as error:
        if isinstance(error, CdkitError) or shortage(error) is None:
            raise
        text = str(error)
        raise ResourceError(
            f"Out of memory: {text.splitlines()[0] if text else 'the machine has no more'}",
            hint="Lower --batch-size and raise --gradient-accumulation as much, which gives the same result; or use "
            "--gradient-checkpointing, --precision bf16, a lower --resolution, or a method that trains less.",
        ) from error
