"""The train stage: photos of concepts and a base model in, a delta out; resumable to the bit on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from cdkit.config import ModelConfig, canonical, setting
from cdkit.datasets import Dataset
from cdkit.errors import CdkitError, ResourceError
from cdkit.inputs import EMBEDDED, Input
from cdkit.manifest import Counts
from cdkit.protocols import Context, SilentProgress
from cdkit.shell import command_line
from cdkit.storage import Folder
from cdkit.system_errors import shortage
from cdkit.threads import set_threads
from cdkit.training.presets import PresetName, fill_in
from cdkit.weights.delta import DELTA_NAME, ON_TOP_OF, Delta, load_delta, save_delta
from cdkit.weights.select import METHODS, MethodName, Recipe, ScheduleName

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


class TrainConfig(ModelConfig):
    """What to teach which model, and how."""

    concepts: dict[str, str] = setting(
        ..., "A concept: its category and the folder of its photos. Repeatable.", flag="--concept", input="folder"
    )
    regularization: dict[str, str] = setting(
        {}, "A concept's regularization set, or any folder of images. Repeatable.", input="folder"
    )
    token: dict[str, str] = setting(
        {},
        "A concept's modifier token and, if wanted, its initializer: dog='<new1>'=ktn. [default: <new1>, <new2>, …]",
    )
    no_token: bool = setting(False, "Train without modifier tokens: prompts name the category alone.")
    tokens: str | None = setting(
        None, "Picks that cdkit tokens rare made, as initializers; <new2> takes the second.", input="folder"
    )
    categories: dict[str, str] = setting(
        {}, "The word prompts use for a concept, where its name is not that word.", flag="--category"
    )
    template: str | None = setting(None, "Caption of photos without one [default: 'photo of a {}'].")
    method: MethodName = setting("custom-diffusion", "What trains.")
    preset: PresetName | None = setting(
        None, "Settings for faces, for styles or for the embedded model [default: that of the base, or paper]."
    )
    delta: list[str] = setting([], "A delta to train on top of. Repeatable.", input="folder")
    steps: int | None = setting(None, "Optimizer steps [default: 250 for each concept].", ge=1)
    batch_size: int | None = setting(
        None, "Samples at once per process, half of them regularization [default: 8].", ge=1
    )
    gradient_accumulation: int = setting(1, "Batches per optimizer step.", ge=1)
    learning_rate: float | None = setting(None, "Learning rate as it is: never scaled [default: 8e-5].", gt=0)
    token_learning_rate: float | None = setting(
        None, "Learning rate of the modifier tokens' rows [default: the learning rate].", gt=0
    )
    schedule: ScheduleName | None = setting(
        None, "Learning rates: constant, or linear, down to 0 at the last step [default: constant]."
    )
    prior_weight: float | None = setting(
        None, "Weight of regularization samples [default: 1; 0.25 is what diffusers' example calls 1].", ge=0
    )
    resolution: int | None = setting(None, "Side of the pictures in pixels [default: the base model's].", ge=16)
    augmentation: bool | None = setting(
        None, "Show photos larger and smaller, and say so in the prompt [default: where the preset does]."
    )
    flip: bool = setting(False, "Mirror half of the pictures; not for texts, logos or faces.")
    enlarge: bool = setting(False, "Enlarge photos smaller than the resolution instead of refusing them.")
    regularization_count: int | None = setting(None, "Use so many regularization images [default: all].", ge=1)
    max_grad_norm: float = setting(1.0, "Clip the gradient to this norm; 0 does not.", ge=0)
    precision: Literal["no", "bf16", "fp16"] = setting("no", "Compute type of what is frozen; no is fp32.")
    seed: int = setting(0, "Seed of everything random.", ge=0)
    processes: int = setting(1, "Processes to train with, one per GPU; each has its own batches.", ge=1)
    sample_every: int = setting(0, "Draw samples/step-*.png every so many steps; 0 does not.", execution=True, ge=0)
    checkpoint_every: int = setting(100, "Steps between checkpoints; 0 writes none.", execution=True, ge=0)
    compile: bool = setting(False, "Compile the U-Net: minutes at the start, faster steps.", execution=True)
    gradient_checkpointing: bool = setting(False, "Less memory, slower steps.", execution=True)
    tensorboard: bool = setting(False, "Also write the metrics for TensorBoard.", execution=True)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return fill_in(values, base=str(values.get("base", EMBEDDED)))

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if not self.concepts:
            raise ValueError("concepts is empty: give --concept NAME=FOLDER")
        for setting_name in ("regularization", "token", "categories"):
            unknown = sorted(set(getattr(self, setting_name)) - set(self.concepts))
            if unknown:
                raise ValueError(f"{setting_name} names {unknown[0]!r}, which is none of the concepts")
        if self.no_token and (self.token or self.tokens):
            raise ValueError("no_token trains without modifier tokens; leave token and tokens out")
        method = METHODS[self.method]
        if self.no_token and (method.word == "rare" or self.method == "textual-inversion"):
            raise ValueError(f"the method {self.method} needs a token; leave no_token out")
        if self.template is not None and "{}" not in self.template:
            raise ValueError("template has no {} where the concept's name goes")
        return self

    def recipe(self) -> Recipe:
        """The settings in force, presets and defaults filled in."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})


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
    from cdkit.devices import choose_device
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

    from cdkit.weights.base_model import load_base_model

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
    from cdkit.training.modifier_rows import trained_tokens
    from cdkit.training.plan import tokens_as_json
    from cdkit.training.setup import set_up
    from cdkit.weights.apply import apply_deltas
    from cdkit.weights.base_model import base_hash

    recipe = config.recipe()
    apply_deltas(pipeline, earlier, note=context.progress.note)
    made_on = base_hash(pipeline)
    samples_per_step = recipe.batch_size * config.gradient_accumulation * accelerator.num_processes
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
