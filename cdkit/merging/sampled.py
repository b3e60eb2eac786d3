"""Merging where text and picture share one attention: what its text keys and values read is sampled, not computed.

The closed form is the same, per block: least change over what ordinary captions show there, such that every concept's
own keys and values come out where its prompts are drawn. What they read depends on the time, the picture and, after
the first block, on the concept's own change, so that it is recorded while each concept is drawn by its own delta
(after the sampled activations of Gu et al. 2023, arXiv 2305.18292, section 3.2). Nothing makes the result exact: its
residual over what was recorded is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from cdkit.core.protocols import Context
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import cross_attention_names, pipeline_resolution
from cdkit.deltas.delta import Delta
from cdkit.deltas.families.table import denoiser_of, family_of
from cdkit.deltas.low_rank import LowRank, matrix
from cdkit.deltas.pipeline_folder import quiet
from cdkit.deltas.text_features import text_towers
from cdkit.merging.closed_form import factorise, residual, solve
from cdkit.merging.config import MergeConfig
from cdkit.tokens.sample import SampledCaptions

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# Drawings are seldom: of each prompt so many, of so many steps; of the captions this many, once each.
DRAWINGS, STEPS, CAPTIONS = 2, 8, 64
DRAWN_AT_ONCE = 4
# Rows of a block that are kept, at most: every direction of the widest text stream several times over.
MOST_ROWS = 40_000


@dataclass(frozen=True)
class SampledMerge:
    """Changes by parameter name; how far they miss what each concept's own keys and values gave, mean and worst.

    average_residual: the mean that plain averaging of the deltas misses there. drift: of what captions give.
    """

    changes: dict[str, LowRank]
    residual: float
    worst_residual: float
    average_residual: float
    drift: float
    rows: int


@dataclass
class _Record:
    """What a block's text keys and values read, (rows, width) a time, by the module that reads it."""

    places: Sequence[torch.Tensor] = ()
    rows: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def of(self, module: str) -> torch.Tensor:
        """All rows of a module, fp32, thinned evenly where they are too many."""
        rows = torch.cat(self.rows[module])
        return rows[:: -(-len(rows) // MOST_ROWS)]


def merge_by_samples(
    config: MergeConfig,
    pipeline: DiffusionPipeline,
    deltas: Sequence[Delta],
    sample: SampledCaptions,
    context: Context,
) -> SampledMerge:
    """Draw captions with the base and every delta's prompts with that delta, and solve block by block.

    The pipeline is left as it was.
    """
    names = [name for name in cross_attention_names(denoiser_of(pipeline)) if any(name in d.changes for d in deltas)]
    captions = sample.captions.to_pylist()[:CAPTIONS]
    batches = sum(-(-len(delta.prompts) * DRAWINGS // DRAWN_AT_ONCE) for delta in deltas)
    batches += -(-len(captions) // DRAWN_AT_ONCE)
    with context.progress.task("drawing what text keys read", batches * STEPS, unit="steps") as task:
        drawing = _Drawing(pipeline, _side(pipeline, config.resolution), config.seed, task.advance)
        ordinary = _recorded(drawing, captions, names)
        concepts = []
        for delta in deltas:
            with apply_deltas(pipeline, [delta]):
                prompts = list(delta.prompts) * DRAWINGS
                concepts.append(_recorded(drawing, prompts, names))
    weights = dict(denoiser_of(pipeline).named_parameters())
    return _solved(config, {name: weights[name].detach().float().cpu() for name in names}, deltas, ordinary, concepts)


def _solved(
    config: MergeConfig,
    weights: Mapping[str, torch.Tensor],
    deltas: Sequence[Delta],
    ordinary: _Record,
    concepts: Sequence[_Record],
) -> SampledMerge:
    changes: dict[str, LowRank] = {}
    misses, averages, moved, whole, number = [], [], 0.0, 0.0, 0
    for module in dict.fromkeys(name.rpartition(".")[0].rpartition(".")[0] for name in weights):
        rows = ordinary.of(module)
        read = [record.of(module) for record in concepts]
        features = torch.cat(read)
        directions = solve(factorise(rows, ridge=config.ridge), features, soft=config.soft)
        number += len(features)
        for name in (name for name in weights if name.startswith(f"{module}.")):
            own = [_change(delta, name, weights[name]) for delta in deltas]
            wanted = torch.cat([part.double() @ change.double().T for part, change in zip(read, own, strict=True)])
            up, down = directions.change(wanted.T)
            changes[name] = LowRank(up.float(), down.float())
            base = weights[name].double()
            targets = features.double() @ base.T + wanted
            misses.append(residual(base + matrix(changes[name]), features, targets))
            averages.append(residual(base + torch.stack(own).mean(dim=0), features, targets))
            moved += float((rows @ matrix(changes[name]).T).norm()) ** 2
            whole += float((rows @ weights[name].T).norm()) ** 2
    missed = torch.cat(misses)
    return SampledMerge(
        changes=changes,
        residual=float(missed.mean()),
        worst_residual=float(missed.max()),
        average_residual=float(torch.cat(averages).mean()),
        drift=(moved / whole) ** 0.5 if whole else 0.0,
        rows=number,
    )


def _change(delta: Delta, name: str, weight: torch.Tensor) -> torch.Tensor:
    change = delta.changes.get(name)
    return torch.zeros_like(weight) if change is None else matrix(change).float()


@dataclass(frozen=True)
class _Drawing:
    """Draws prompts with a pipeline as it is now, side pixels wide; advance is told of every step."""

    pipeline: DiffusionPipeline
    side: int
    seed: int
    advance: Callable[[int], None]

    def draw(self, prompts: list[str], first: int) -> None:
        with torch.inference_mode(), quiet():
            self.pipeline(
                prompt=prompts,
                num_inference_steps=STEPS,
                width=self.side,
                height=self.side,
                generator=[torch.Generator("cpu").manual_seed(self.seed + first + n) for n in range(len(prompts))],
                output_type="latent",
                **family_of(self.pipeline).draw_options(1.0, None),
            )
        self.advance(STEPS)


def _side(pipeline: DiffusionPipeline, asked: int | None) -> int:
    """What was asked for, or half of the model's own side, as the pipeline takes it."""
    step = family_of(pipeline).step(pipeline.vae.config)
    half = pipeline_resolution(pipeline, None) // 2 // step * step
    return pipeline_resolution(pipeline, asked if asked is not None else max(step, half))


def _recorded(drawing: _Drawing, prompts: Sequence[str], names: Sequence[str]) -> _Record:
    """What the named weights' modules read of the text while the prompts are drawn."""
    family, towers = family_of(drawing.pipeline), text_towers(drawing.pipeline)
    with _watched(denoiser_of(drawing.pipeline), names) as record:
        for start in range(0, len(prompts), DRAWN_AT_ONCE):
            batch = list(prompts[start : start + DRAWN_AT_ONCE])
            record.places = family.text_places(towers, family.ids(towers, batch)[0])
            drawing.draw(batch, start)
    return record


@contextmanager
def _watched(denoiser: Any, names: Sequence[str]) -> Iterator[_Record]:
    """Record what the keys of the named modules read at the places of the text."""
    record = _Record()
    modules = dict(denoiser.named_modules())

    def watch(module: str) -> Any:
        def see(projection: Any, arguments: tuple[Any, ...]) -> None:
            rows = record.rows.setdefault(module, [])
            for hidden, places in zip(arguments[0], record.places, strict=False):
                rows.append(hidden[places.to(hidden.device)].float().cpu())

        return see

    # Keys and values of one attention read the same.
    readers = {name.rpartition(".")[0].rpartition(".")[0]: name.rpartition(".")[0] for name in names}
    handles = [modules[reader].register_forward_pre_hook(watch(module)) for module, reader in readers.items()]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
