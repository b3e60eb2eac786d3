"""The train stage: photos of concepts and a base model in, a delta out; resumable to the bit on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cdkit.core.config import canonical
from cdkit.core.errors import ConfigError
from cdkit.core.fingerprints import Input
from cdkit.core.formatting import command_line
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context, SilentProgress
from cdkit.core.shards import Dataset
from cdkit.core.storage import Folder, flush
from cdkit.core.threads import set_threads
from cdkit.deltas.delta import DELTA_NAME, ON_TOP_OF, Delta, load_delta, save_delta
from cdkit.deltas.gating import GatedChange
from cdkit.training.config import TrainConfig

if TYPE_CHECKING:
    from PIL import Image

    from cdkit.deltas.families.family import Family
    from cdkit.training.early_stop import EarlyStop
    from cdkit.training.plan import Plan
    from cdkit.training.processes import Team
    from cdkit.training.trainables import Trainables


TENSORBOARD, CLASS_IMAGES = "tensorboard", "class-images"
CLASS_IMAGES_EACH = 200
FINAL_SHARE = 10
LARGE_DELTA = 300_000_000  # SDXL's keys and values are 1.36 GB, a whole U-Net 3.4 GB and more


def train(config: TrainConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Train, going on from the newest checkpoint, and write delta.safetensors, metrics.csv and samples/."""
    from cdkit.training.feasibility import memory_explained
    from cdkit.training.processes import started_team

    with memory_explained(config):
        sets = {**config.regularization, **_draw_class_images(config, out, context)}
    with started_team(config.processes, _take_part, (config, sets, out)) as team, memory_explained(config):
        return _train(config, sets, out, context, team)


def _draw_class_images(config: TrainConfig, out: Folder, context: Context) -> dict[str, str]:
    """Folders of what the base model draws for the class word, by concept, for those that have no set of their own.

    What is there already is not drawn again.
    """
    if config.keep != "generated":
        return {}
    from cdkit.retrieval.class_images import ClassImageDrawer
    from cdkit.retrieval.config import ClassImagesConfig

    folders = {}
    for number, name in enumerate(config.concepts):
        if name in config.regularization:
            continue
        prompt = config.recipe().template[0].replace("{}", config.categories.get(name, name))
        count = config.regularization_count or CLASS_IMAGES_EACH
        drawing = ClassImagesConfig(
            prompts=[prompt], count=count, base=config.base, device=config.device, precision=config.precision
        )
        folder = out.sub(CLASS_IMAGES).sub(str(number)).path
        context.progress.note(f"Drawing {count} images of {prompt!r} to keep {name!r} by.")
        ClassImageDrawer(drawing.sampling(), config.seed, folder, context).draw(range(count))
        folders[name] = str(folder)
    return folders


def _take_part(config: TrainConfig, sets: Mapping[str, str], out: Folder, team: Team) -> None:
    """What the further processes run."""
    from cdkit.engines import create_engine
    from cdkit.training.feasibility import memory_explained

    with memory_explained(config):
        _train(config, sets, out, Context(create_engine("local", 1), SilentProgress()), team)


def _train(config: TrainConfig, sets: Mapping[str, str], out: Folder, context: Context, team: Team) -> Dataset:
    from cdkit.core.machine import choose_device
    from cdkit.deltas.apply import apply_deltas
    from cdkit.deltas.base_model import base_hash
    from cdkit.deltas.pipeline_folder import library_errors
    from cdkit.training.base_facts import read_base
    from cdkit.training.feasibility import check_memory
    from cdkit.training.fit import fitted
    from cdkit.training.loop import SAMPLES, Loop
    from cdkit.training.plan import make_plan
    from cdkit.training.processes import accelerated
    from cdkit.training.progress_samples import draw_progress
    from cdkit.training.setup import set_up
    from cdkit.training.step_names import step_name

    device, note, recipe = choose_device(config.device), context.progress.note, config.recipe()
    if device.type == "cpu":
        _settle_threads(config, out, context, team)
    earlier = [load_delta(path) for path in config.delta]
    if any(delta.gated for delta in earlier):
        raise ConfigError(
            "Nothing trains on top of a gated delta: it changes no weight.",
            hint="Train on the base model, and sample with both deltas, or merge them if both are gated.",
        )
    base = read_base(config.base)
    plan = make_plan(config.model_copy(update={"regularization": sets}), base, note)
    config = fitted(config, plan, base, device, note if team.rank == 0 else lambda message: None)
    if team.rank == 0:
        check_memory(config, plan, base, device, note)
    early_stop = _early_stop(config, plan, note) if team.rank == 0 else None
    tensorboard = out / TENSORBOARD if config.tensorboard and team.rank == 0 else None
    with accelerated(team, device=device, precision=config.precision, tensorboard=tensorboard) as accelerator:
        pipeline = base.load()
        apply_deltas(pipeline, earlier, note=note)
        made_on = base_hash(pipeline)
        with library_errors(f"The base model {config.base!r}", "trained"):
            setup = set_up(config, plan, pipeline, accelerator.device, context)
        loop = Loop(config, setup, out, accelerator, note, early_stop)

        def draw(step: int) -> Mapping[str, Sequence[Image.Image]]:
            target = out.sub(SAMPLES) / f"{step_name(step)}.png"
            if setup.gate is not None:
                setup.gate.follow(pipeline)
            drawn = draw_progress(plan, recipe.template[0], pipeline, accelerator, target)
            if setup.gate is not None:
                setup.gate.stop_following()
            note(f"Samples of step {step}: {target}")
            return drawn

        loop.run(context, draw)
    if tensorboard is not None and tensorboard.exists():
        flush(tensorboard)
    size = 0
    if team.rank == 0:
        size = _save(config, plan, setup.trainables, made_on, base.family, earlier, out, context)
    photos = sum(len(planned.squares) for planned in plan.concepts)
    others = sum(planned.left_out for planned in plan.concepts)
    details: dict[str, Any] = {
        "steps": loop.done or recipe.steps,
        "seconds": loop.metrics.seconds,
        "final_loss": loop.metrics.mean_loss(max(1, recipe.steps // FINAL_SHARE)),
        "base": config.base,
        "method": config.method,
        "tokens": plan.words_as_json(),
        "prompts": plan.prompts,
        "bytes": size,
        "bytes_per_concept": size // len(plan.concepts),
        "parameters": sum(parameter.numel() for parameter in setup.trainables.named().values()),
    }
    counts = Counts(photos + others, photos, {"not_an_image": others} if others else {})
    return Dataset("delta", out.path, counts, details)


def _early_stop(config: TrainConfig, plan: Plan, note: Callable[[str], None]) -> EarlyStop | None:
    """What tells whether a training only copies; on the CPU, so that its encoder takes nothing of a GPU's memory."""
    if config.early_stop is None:
        return None
    from cdkit.encoders.image_towers import load_image_encoder
    from cdkit.training.early_stop import EarlyStop

    encoder = load_image_encoder(config.early_stop, device="cpu")
    return EarlyStop(encoder, plan, config.recipe().template[0], note)


def _settle_threads(config: TrainConfig, out: Folder, context: Context, team: Team) -> None:
    """Share the threads between the processes; a training goes on with as many as it began, for the same bits."""
    from cdkit.training.checkpoint import CHECKPOINTS, Checkpoints

    share = max(1, config.thread_count() // team.size)
    before = Checkpoints(out / CHECKPOINTS).threads() or share
    if before != share and config.threads is not None:
        context.progress.note(
            f"The checkpoint was made on {before} threads: on {share}, the result is the same but for rounding. "
            "Without --threads the training goes on as it began."
        )
    set_threads(share if config.threads is not None else before)


def _save(
    config: TrainConfig,
    plan: Plan,
    trainables: Trainables,
    made_on: str,
    family: Family,
    earlier: Sequence[Delta],
    out: Folder,
    context: Context,
) -> int:
    """Write the delta's file; returns its size in bytes."""
    from cdkit.training.trainables import trained_tokens

    gated = plan.method.change == "gated"
    of_family = {"family": family.name} if family.denoiser == "transformer" else {}
    on_top_of = {ON_TOP_OF: [delta.base_hash for delta in earlier]} if earlier else {}
    delta = Delta(
        method=config.method,
        base=config.base,
        base_hash=made_on,
        changes={} if gated else trainables.changes(),
        gated=(GatedChange(plan.subjects, trainables.changes()),) if gated else (),
        tokens=trained_tokens(plan.tokens, trainables.rows),
        prompts=tuple(plan.prompts),
        settings=canonical(config) | on_top_of | of_family,
        part=family.denoiser,
    )
    save_delta(delta, out / DELTA_NAME)
    size = (out / DELTA_NAME).stat().st_size
    if size > LARGE_DELTA:
        context.progress.note(
            f"{DELTA_NAME} has {size / 1e9:.1f} GB. As products of low rank it takes a fraction: "
            f"{command_line('cdkit', 'delta', 'compress', out.path)} --max-error 0.1 --out DIR"
        )
    return size
